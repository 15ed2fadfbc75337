//! Commands that the servers have by other names.

mod common;

use common::{Cluster, Proxy, Server, until};

const RENAMES: &str = "[rename]\nkeys = \"mykeys\"\nscan = \"keys\"\nflushall = \"wipe\"\nflushdb = \"wipedb\"\n\
    dbsize = \"howmany\"\ncommand = \"orders\"\nhgetall = \"all-of-it\"\nrandomkey = \"any\"\n\
    smembers = \"folk\"\nsadd = \"put\"\ndel = \"rm\"\n";

fn renamed() -> Vec<String> {
    RENAMES
        .lines()
        .skip(1)
        .flat_map(|line| {
            let (old, new) = line.split_once(" = ").unwrap();
            ["--rename-command".to_string(), old.into(), new.trim_matches('"').into()]
        })
        .collect()
}

fn use_them(proxy: &Proxy) {
    let mut c = proxy.client();
    for i in 0..20 {
        c.ok(&["SET", &format!("k{i}"), "v"]);
    }
    assert_eq!(c.int(&["HOWMANY"]), 20);
    assert!(c.show(&["MyKeys", "k1?"]).starts_with("*10"));
    assert!(c.text(&["ANY"]).starts_with('k'));
    // What was the name of another command is that of this one.
    let (mut cursor, mut seen) = ("0".to_string(), 0);
    loop {
        let reply = c.ask(&["KEYS", &cursor, "COUNT", "100"]);
        let value = cacheyard_proxy::resp::Value::parse(&reply).unwrap();
        seen += value.list().unwrap()[1].list().unwrap().len();
        cursor = String::from_utf8_lossy(value.list().unwrap()[0].text().unwrap()).into_owned();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(seen, 20);
    assert_eq!(c.int(&["PUT", "s1", "a", "b"]), 2);
    assert_eq!(c.int(&["PUT", "s2", "b", "c"]), 2);
    assert_eq!(c.int(&["SUNIONSTORE", "s3", "s1", "s2"]), 3);
    assert_eq!(c.int(&["SINTERSTORE", "s3", "s1", "s2"]), 1);
    assert_eq!(c.ask(&["FOLK", "s3"]), b"*1\r\n$1\r\nb\r\n");
    assert_eq!(c.int(&["RM", "s1", "s2", "s3", "k1"]), 4);
    c.ask(&["HSET", "h", "f", "v"]);
    assert_eq!(c.ask(&["ALL-OF-IT", "h"]), b"*2\r\n$1\r\nf\r\n$1\r\nv\r\n");
    assert!(c.int(&["ORDERS", "COUNT"]) > 200);
    for old in ["SCAN", "FLUSHALL", "FLUSHDB", "DBSIZE", "COMMAND", "HGETALL", "RANDOMKEY", "DEL", "SMEMBERS"] {
        let said = c.show(&[old, "0"]);
        assert!(said.starts_with(&format!("-ERR unknown command \\'{old}\\'")), "{said}");
    }
    c.ok(&["MULTI"]);
    assert_eq!(c.show(&["RM", "h"]), "+QUEUED\\r\\n");
    assert_eq!(c.ask(&["EXEC"]), b"*1\r\n:1\r\n");
    c.ok(&["WIPEDB"]);
    c.ok(&["SET", "a", "1"]);
    c.ok(&["WIPE"]);
    assert_eq!(c.int(&["HOWMANY"]), 0);
}

#[test]
fn renamed_commands_work_in_front_of_a_cluster() {
    let args = renamed();
    let cluster = Cluster::start_with(3, false, &args.iter().map(String::as_str).collect::<Vec<_>>());
    use_them(&Proxy::start("cluster", &cluster.addrs(), RENAMES));
}

#[test]
fn renamed_commands_work_with_split_servers_and_change_with_a_reload() {
    let args = renamed();
    let server = Server::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let proxy = Proxy::start("split", &[server.addr()], RENAMES);
    use_them(&proxy);
    let plain = Server::start(&[]);
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    let said = proxy.change(|text| text.replace(RENAMES, "").replace(&server.addr(), &plain.addr()));
    assert_eq!(said, "ok\n");
    until(5.0, "the other server", || c.ask(&["DBSIZE"]) == b":0\r\n");
    assert!(c.show(&["HOWMANY"]).starts_with("-ERR unknown command"));
    assert!(proxy.change(|text| text + "[rename]\nkeys = \"get\"\n").starts_with("error: rename: keys"));
}
