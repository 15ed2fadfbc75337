//! Several processes at one address: what is asked of all clients is asked of all processes.

mod common;

use std::collections::HashMap;

use common::{Client, Cluster, Proxy, Server, until};

fn family(server: &Server) -> [Proxy; 3] {
    let start = || Proxy::start("split", &[server.addr()], "");
    let all = [start(), start(), start()];
    let sockets: Vec<String> = all.iter().map(|p| p.place.path().join("control").display().to_string()).collect();
    // They know each other, and one more that does not run.
    for (i, proxy) in all.iter().enumerate() {
        let mut sockets = sockets.clone();
        sockets[i] = sockets[i].replace("/control", "/./control");
        let siblings = format!("siblings = {:?}\n", [&sockets[..], &["/nowhere/control".to_string()]].concat());
        assert_eq!(proxy.change(|text| siblings + &text), "ok\n");
    }
    until(5.0, "only ours to be there", || all.iter().all(|p| p.number("clients") == 0));
    all
}

/// Names and numbers of CLIENT LIST.
fn listed(c: &mut Client, more: &[&str]) -> HashMap<String, i64> {
    let text = c.text(&[&["CLIENT", "LIST"], more].concat());
    let part =
        |line: &str, name: &str| line.split(' ').find_map(|p| p.strip_prefix(&format!("{name}="))).unwrap().to_string();
    text.lines().map(|line| (part(line, "name"), part(line, "id").parse().unwrap())).collect()
}

#[test]
fn clients_are_listed_counted_and_killed_wherever_they_are() {
    let server = Server::start(&[]);
    let all = family(&server);
    let mut clients: Vec<Client> = all.iter().flat_map(|p| [p.client(), p.client()]).collect();
    for (i, c) in clients.iter_mut().enumerate() {
        c.ok(&["CLIENT", "SETNAME", &format!("c{i}")]);
    }
    let mut ids: Vec<i64> = clients.iter_mut().map(|c| c.int(&["CLIENT", "ID"])).collect();
    let seen = listed(&mut clients[0], &[]);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(seen[&format!("c{i}")], *id);
    }
    let (first, fifth) = (ids[0], ids[4]);
    ids.sort();
    ids.dedup();
    assert_eq!((seen.len(), ids.len()), (6, 6));
    let some = listed(&mut clients[0], &["ID", &first.to_string(), &fifth.to_string()]);
    assert_eq!((some.len(), some["c0"], some["c4"]), (2, first, fifth));
    assert_eq!(listed(&mut clients[3], &["TYPE", "pubsub"]).len(), 0);
    assert!(clients[0].text(&["INFO", "clients"]).contains("connected_clients:6\r\n"));

    // By number, by address in both forms; each is with another process than who asks.
    let addr = |c: &Client| c.stream.local_addr().unwrap().to_string();
    assert_eq!(clients[0].int(&["CLIENT", "KILL", "ID", &fifth.to_string()]), 1);
    assert!(clients[4].try_ask(&["PING"]).is_err());
    let (second, third) = (addr(&clients[2]), addr(&clients[3]));
    clients[0].ok(&["CLIENT", "KILL", &second]);
    assert!(clients[2].try_ask(&["PING"]).is_err());
    assert_eq!(clients[0].show(&["CLIENT", "KILL", &second]), "-ERR No such client\\r\\n");
    assert_eq!(clients[5].int(&["CLIENT", "KILL", "ADDR", &third]), 1);
    assert!(clients[3].try_ask(&["PING"]).is_err());
    assert!(clients[0].show(&["CLIENT", "KILL", "ID", "x"]).starts_with("-ERR client-id"));
    // All but who asks.
    assert_eq!(clients[0].int(&["CLIENT", "KILL", "TYPE", "normal"]), 2);
    assert_eq!(clients[0].ask(&["PING"]), b"+PONG\r\n");
    assert!(clients[1].try_ask(&["PING"]).is_err() && clients[5].try_ask(&["PING"]).is_err());
}

#[test]
fn monitor_sees_the_clients_of_all_processes_by_their_own_addresses() {
    let server = Server::start(&[]);
    let all = family(&server);
    let mut watcher = all[0].client();
    watcher.ok(&["MONITOR"]);
    let mut c = all[2].client();
    let mut near = all[0].client();
    let mut line = |c: &mut Client, words: &[&str]| {
        // A sibling may take note a little later.
        let (mut said, own) = (String::new(), c.stream.local_addr().unwrap().to_string());
        until(10.0, "the command to be seen", || {
            c.ask(words);
            said = watcher.receive().escape_ascii().to_string();
            said.contains(&format!("[0 {own}]"))
        });
        said
    };
    let said = line(&mut near, &["SET", "near", "a \"b\"\n"]);
    assert!(said.ends_with(r#"\"SET\" \"near\" \"a \\\"b\\\"\\n\"\r\n"#), "{said}");
    assert!(line(&mut c, &["GET", "far"]).contains("far"));
    assert!(!line(&mut c, &["AUTH", "secret"]).contains("secret"));
    // One shard as it sees itself.
    let cluster = Cluster::start(1, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let mut shard = proxy.client();
    shard.ok(&["MONITOR", &cluster.addrs()[0]]);
    proxy.client().ok(&["SET", "a", "1"]);
    let mut said = String::new();
    until(5.0, "the command to be seen", || {
        said = shard.receive().escape_ascii().to_string();
        said.contains("SET")
    });
}

#[test]
fn where_clients_come_from_is_told_or_not_from_one_moment_to_the_next() {
    let server = Server::start(&[]);
    let all = family(&server);
    let mut clients: Vec<Client> = all.iter().flat_map(|p| [p.client(), p.client()]).collect();
    let told = |c: &mut Client| {
        let text = c.text(&["CLIENT", "LIST"]);
        let mut found: Vec<String> =
            text.split(' ').filter_map(|p| p.strip_prefix("addr=")).map(String::from).collect();
        found.sort();
        found
    };
    let mut real: Vec<String> = clients.iter().map(|c| c.stream.local_addr().unwrap().to_string()).collect();
    real.sort();
    assert_eq!(told(&mut clients[0]), real);
    for proxy in &all {
        assert_eq!(proxy.change(|text| format!("client_ip = false\n{text}")), "ok\n");
    }
    let mut hidden = told(&mut clients[0]);
    assert!(hidden.iter().all(|addr| addr.starts_with("198.19.")), "{hidden:?}");
    hidden.dedup();
    assert_eq!(hidden.len(), 6);

    // Such an address is as good as any for who wants to end it.
    let text = clients[5].text(&["CLIENT", "INFO"]);
    let last = text.split(' ').find_map(|p| p.strip_prefix("addr=")).unwrap().to_string();
    assert!(hidden.contains(&last));
    clients[0].ok(&["CLIENT", "KILL", &last]);
    assert!(clients[5].try_ask(&["PING"]).is_err());
    let gone = clients.pop().unwrap().stream.local_addr().unwrap().to_string();
    for proxy in &all {
        assert_eq!(proxy.change(|text| text.replace("client_ip = false", "client_ip = true")), "ok\n");
    }
    real.retain(|addr| *addr != gone);
    assert_eq!(told(&mut clients[0]), real);
}
