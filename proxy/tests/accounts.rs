//! Who a client is, is for the servers to say; and reads split over replicas.

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use common::{Client, Cluster, Place, Process, Proxy, Server, address, until};

#[test]
fn accounts_are_those_of_the_servers() {
    let server = Server::start(&["--requirepass", "secret"]);
    let mut admin = server.client();
    admin.ok(&["AUTH", "secret"]);
    admin.ok(&[
        "ACL",
        "SETUSER",
        "reader",
        "on",
        ">rpw",
        "~*",
        "&*",
        "+@read",
        "+ping",
        "+multi",
        "+exec",
        "+acl|whoami",
    ]);
    let proxy = Proxy::start("split", &[server.addr()], "password = \"secret\"\n");
    let mut c = proxy.client();
    for line in
        [&["GET", "a"][..], &["PING"], &["CLIENT", "LIST"], &["MULTI"], &["SUBSCRIBE", "x"], &["BLPOP", "a", "1"]]
    {
        assert_eq!(c.ask(line), b"-NOAUTH Authentication required.\r\n", "{line:?}");
    }
    assert!(c.show(&["HELLO", "3"]).starts_with("-NOAUTH HELLO must be"));
    assert!(c.show(&["AUTH", "wrong"]).starts_with("-WRONGPASS"));
    assert!(c.show(&["HELLO", "3", "AUTH", "reader", "wrong"]).starts_with("-WRONGPASS"));
    assert_eq!(c.ask(&["GET", "a"]), b"-NOAUTH Authentication required.\r\n");
    assert!(c.show(&["HELLO", "3", "AUTH", "reader", "rpw"]).starts_with("%7"));
    assert_eq!(c.ask(&["GET", "a"]), b"_\r\n");
    assert!(c.show(&["SET", "a", "1"]).starts_with("-NOPERM"));
    assert_eq!(c.text(&["ACL", "WHOAMI"]), "reader");
    c.ok(&["MULTI"]);
    assert!(c.show(&["SET", "a", "1"]).starts_with("-NOPERM"));
    assert!(c.show(&["EXEC"]).starts_with("-EXECABORT"));
    // Another at the same time is somebody else.
    let mut other = proxy.client();
    other.ok(&["AUTH", "secret"]);
    other.ok(&["SET", "a", "1"]);
    assert_eq!(other.text(&["ACL", "WHOAMI"]), "default");
    assert_eq!(c.text(&["GET", "a"]), "1");
    assert!(c.show(&["SET", "a", "1"]).starts_with("-NOPERM"));
    // After RESET nobody is anybody.
    assert_eq!(other.show(&["RESET"]), "+RESET\\r\\n");
    assert!(other.show(&["GET", "a"]).starts_with("-NOAUTH"));
}

#[test]
fn an_account_may_say_its_name_in_its_password() {
    // With a password of the default account, and without one.
    for args in [&["--requirepass", "se:cret"][..], &[]] {
        let server = Server::start(args);
        let mut admin = server.client();
        if !args.is_empty() {
            admin.ok(&["AUTH", "se:cret"]);
        }
        admin.ok(&["ACL", "SETUSER", "reader", "on", ">r:pw", "~*", "+@read", "+acl|whoami"]);
        let own = if args.is_empty() { "" } else { "password = \"se:cret\"\n" };
        let proxy = Proxy::start("split", &[server.addr()], own);
        let whoami = |login: &[&str]| {
            let mut c = proxy.client();
            let reply = c.show(login);
            (reply, c.show(&["ACL", "WHOAMI"]))
        };
        let (reply, who) = whoami(&["AUTH", "reader:r:pw"]);
        assert_eq!((&reply[..], &who[..]), ("+OK\\r\\n", "$6\\r\\nreader\\r\\n"));
        for wrong in ["reader:pw", "reader:", "reader", ":r:pw", "nobody:r:pw", ":"] {
            let (reply, who) = whoami(&["AUTH", wrong]);
            let said = server.client().show(&["AUTH", wrong]);
            assert_eq!(reply, said, "{wrong}");
            assert!(!who.contains("reader"), "{wrong}: {who}");
        }
        if args.is_empty() {
            continue;
        }
        for login in [&["AUTH", "default", "reader:r:pw"][..], &["HELLO", "3", "AUTH", "default", "reader:r:pw"]] {
            let (_, who) = whoami(login);
            assert_eq!(who, "$6\\r\\nreader\\r\\n", "{login:?}");
        }
        // The default account's own password may have colons, and another's name is taken at its word.
        assert_eq!(whoami(&["AUTH", "se:cret"]).1, "$7\\r\\ndefault\\r\\n");
        assert!(whoami(&["AUTH", "other", "reader:r:pw"]).0.starts_with("-WRONGPASS"));
    }
}

#[test]
fn who_may_not_see_or_end_the_clients_of_a_server_may_not_behind_the_proxy() {
    let server = Server::start(&[]);
    server.client().ok(&["ACL", "SETUSER", "reader", "on", ">r", "~*", "+@read", "+client|id"]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let (mut other, mut reader) = (proxy.client(), proxy.client());
    let id = other.show(&["CLIENT", "ID"]).trim_start_matches(':').trim_end_matches("\\r\\n").to_string();
    assert_eq!(reader.show(&["AUTH", "reader", "r"]), "+OK\\r\\n");
    for words in [&["CLIENT", "LIST"][..], &["CLIENT", "KILL", "ID", &id], &["CLIENT", "KILL", "TYPE", "normal"]] {
        let reply = reader.show(words);
        assert!(reply.starts_with("-NOPERM"), "{words:?}: {reply}");
    }
    assert!(other.show(&["CLIENT", "LIST"]).contains("user=reader"));
    assert_eq!(other.show(&["CLIENT", "KILL", "USER", "reader"]), ":1\\r\\n");
}

#[test]
fn accounts_hold_on_every_shard() {
    let cluster = Cluster::start(3, false);
    for node in &cluster.nodes {
        let mut admin = node.client();
        admin.ok(&["ACL", "SETUSER", "writer", "on", ">wpw", "~w*", "&*", "+@all"]);
    }
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let mut c = proxy.client();
    c.ok(&["AUTH", "writer", "wpw"]);
    for i in 0..30 {
        c.ok(&["SET", &format!("w{i}"), "1"]);
        assert!(c.show(&["SET", &format!("x{i}"), "1"]).starts_with("-NOPERM"));
    }
    assert!(c.show(&["MGET", "w1", "w2", "x3", "x4"]).starts_with("-NOPERM"));
    assert_eq!(c.int(&["DEL", "w1", "w2", "w3"]), 3);
}

#[test]
fn reads_go_to_replicas_by_weight_and_to_the_master_when_there_is_none() {
    let master = Server::start(&[]);
    let replicaof = format!("{} 6379", master.host);
    let mut replicas: Vec<Server> = (0..2).map(|_| Server::start(&["--replicaof", &replicaof])).collect();
    for replica in &replicas {
        until(20.0, "replication", || replica.client().text(&["INFO", "replication"]).contains("link_status:up"));
    }
    let servers = vec![master.addr(), replicas[0].addr(), replicas[1].addr()];
    let more = format!("[times]\nrefresh_ms = 200\nreply_ms = 1000\n[weights]\n\"{}\" = 3\n", replicas[0].addr());
    let proxy = Proxy::start("split", &servers, &more);
    until(5.0, "both replicas", || proxy.state().matches("\"role\":\"replica\",\"healthy\":true").count() == 2);
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    for replica in &replicas {
        until(5.0, "replication", || replica.client().ask(&["GET", "a"]) == b"$1\r\n1\r\n");
    }
    let before = [replicas[0].calls("get"), replicas[1].calls("get")];
    for _ in 0..400 {
        assert_eq!(c.text(&["GET", "a"]), "1");
    }
    let (first, second) = (replicas[0].calls("get") - before[0], replicas[1].calls("get") - before[1]);
    assert_eq!((first, second, master.calls("get")), (300, 100, 0));
    // What is watched is read where it is written.
    c.ok(&["WATCH", "a"]);
    c.ask(&["GET", "a"]);
    c.ok(&["MULTI"]);
    c.ask(&["INCR", "a"]);
    assert_eq!(c.ask(&["EXEC"]), b"*1\r\n:2\r\n");
    assert_eq!(master.calls("get"), 1);
    // Databases belong to a client.
    let mut other = proxy.client();
    other.ok(&["SELECT", "5"]);
    other.ok(&["SET", "a", "five"]);
    assert_eq!(c.text(&["GET", "a"]), "2");
    until(5.0, "replication", || other.ask(&["GET", "a"]) == b"$4\r\nfive\r\n");
    assert!(other.show(&["SELECT", "99"]).starts_with("-ERR DB index is out of range"));
    assert_eq!(other.text(&["GET", "a"]), "five");
    // A script is known wherever it may run.
    let sha = c.text(&["SCRIPT", "LOAD", "return redis.call('get', KEYS[1])"]);
    assert_eq!(c.text(&["EVALSHA_RO", &sha, "1", "a"]), "2");
    // One replica dies, then the other.
    replicas[0].stop();
    for _ in 0..50 {
        assert_eq!(c.text(&["GET", "a"]), "2");
    }
    replicas[1].stop();
    for _ in 0..50 {
        assert_eq!(c.text(&["GET", "a"]), "2");
    }
    assert!(master.calls("get") > 50);
}

#[test]
fn writes_follow_the_master() {
    let master = Server::start(&[]);
    let replicaof = format!("{} 6379", master.host);
    let replica = Server::start(&["--replicaof", &replicaof]);
    until(20.0, "replication", || replica.client().text(&["INFO", "replication"]).contains("link_status:up"));
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], "");
    let mut c = proxy.client();
    for i in 0..100 {
        assert_eq!(c.int(&["INCR", "n"]), i + 1);
    }
    let n = until_same(&master, &replica);
    assert_eq!(n, "100");
    // Handed over as a careful operator would: nobody writes in between.
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
    master.client().ok(&["REPLICAOF", &replica.host, "6379"]);
    for i in 100..200 {
        assert_eq!(c.int(&["INCR", "n"]), i + 1);
    }
    assert_eq!(replica.client().text(&["GET", "n"]), "200");
}

fn until_same(a: &Server, b: &Server) -> String {
    let mut last = String::new();
    until(5.0, "replication", || {
        last = a.client().text(&["GET", "n"]);
        b.client().ask(&["GET", "n"]) == a.client().ask(&["GET", "n"])
    });
    last
}

#[test]
fn the_proxys_password_can_come_by_standard_input_and_without_it_nothing_is_served() {
    let server = Server::start(&["--requirepass", "secret"]);
    let place = Place::new();
    let addr = format!("{}:6379", address());
    let config = place.path().join("config.toml");
    let text = format!(
        "mode = \"split\"\nlisten = [\"{addr}\"]\nservers = [\"{}\"]\npassword_from = \"stdin\"\n",
        server.addr()
    );
    std::fs::write(&config, text).unwrap();
    let start = |said: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cacheyard-proxy"));
        let mut child = command.arg(&config).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(said.as_bytes()).unwrap();
        Process(child)
    };
    for said in ["", "secr"] {
        // Whoever was to say it has ended.
        assert_eq!(start(said).0.wait().unwrap().code(), Some(2));
    }
    let _proxy = start("secret\n");
    until(10.0, "the proxy to listen", || TcpStream::connect(&addr).is_ok());
    let mut c = Client::new(&addr);
    c.ok(&["AUTH", "secret"]);
    c.ok(&["SET", "a", "1"]);
}

/// A master, and a replica that has what it has.
fn pair() -> (Server, Server) {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", &format!("{} 6379", master.host)]);
    until(20.0, "replication", || replica.client().text(&["INFO", "replication"]).contains("link_status:up"));
    (master, replica)
}

fn knows_the_replica(proxy: &Proxy) {
    until(5.0, "the replica", || proxy.state().contains("\"role\":\"replica\",\"healthy\":true"));
}

#[test]
fn scripts_of_accounts_that_only_read_are_run_by_replicas() {
    let (master, replica) = pair();
    for server in [&master, &replica] {
        server
            .client()
            .ok(&["ACL", "SETUSER", "anna", "on", ">pw", "~*", "+@read", "+eval", "+evalsha", "+multi", "+exec"]);
    }
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], "");
    knows_the_replica(&proxy);
    let script = ["EVAL", "return redis.call('get', KEYS[1])", "1", "a"];
    let mut reader = proxy.client();
    reader.ok(&["AUTH", "anna", "pw"]);
    reader.ask(&script);
    assert_eq!((master.calls("eval"), replica.calls("eval")), (1, 0));
    assert_eq!(proxy.change(|text| format!("readers = [\"anna\"]\n{text}")), "ok\n");
    for _ in 0..10 {
        reader.ask(&script);
    }
    assert_eq!((master.calls("eval"), replica.calls("eval")), (1, 10));
    // Others' write, and what is in a transaction belongs to it.
    proxy.client().ask(&["EVAL", "return redis.call('set', KEYS[1], 1)", "1", "a"]);
    reader.ok(&["MULTI"]);
    reader.ask(&script);
    reader.ask(&["EXEC"]);
    assert_eq!((master.calls("eval"), replica.calls("eval")), (3, 10));
}

#[test]
fn keys_is_for_replicas_if_so_configured_and_for_masters_when_one_has_gone() {
    let (master, replica) = pair();
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], "");
    knows_the_replica(&proxy);
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    assert_eq!(c.ask(&["KEYS", "*"]), b"*1\r\n$1\r\na\r\n");
    assert_eq!((master.calls("keys"), replica.calls("keys")), (1, 0));
    assert_eq!(proxy.change(|text| format!("on_replicas = [\"keys\"]\n{text}")), "ok\n");
    until(5.0, "replication", || c.ask(&["KEYS", "*"]) == b"*1\r\n$1\r\na\r\n");
    assert_eq!(master.calls("keys"), 1);
    assert!(replica.calls("keys") > 0);

    let mut cluster = Cluster::start(2, true);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "on_replicas = [\"keys\"]\n");
    until(5.0, "the replicas", || proxy.state().matches("\"role\":\"replica\",\"healthy\":true").count() == 2);
    let mut c = proxy.client();
    for i in 0..20 {
        c.ok(&["SET", &format!("k{i}"), "1"]);
    }
    let all = |c: &mut Client| c.ask(&["KEYS", "*"]).starts_with(b"*20\r\n");
    until(5.0, "replication", || all(&mut c));
    let calls = |nodes: &[Server]| nodes.iter().map(|node| node.calls("keys")).collect::<Vec<_>>();
    assert_eq!(calls(&cluster.nodes[..2]), [0, 0]);
    assert!(calls(&cluster.nodes[2..]).iter().all(|n| *n > 0));
    cluster.nodes[2].stop();
    assert!(all(&mut c));
}
