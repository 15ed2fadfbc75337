//! Transactions through the proxy are those of a plain server, and what a client has queued goes out in one write.

mod common;

use std::io::Write;

use cacheyard_proxy::resp::request;
use common::{Client, Cluster, Proxy, Server};

/// Conversations, a command each between the semicolons.
const SCRIPTS: &[&str] = &[
    "MULTI ; SET {t}a 1 ; INCR {t}a ; PING ; EXEC ; GET {t}a",
    "MULTI ; EXEC",
    "MULTI ; PING ; ECHO x ; EXEC",
    "EXEC",
    "DISCARD",
    "MULTI ; DISCARD ; GET {t}a",
    "MULTI ; SET {t}d 1 ; DISCARD ; GET {t}d",
    "MULTI ; MULTI ; SET {t}a 2 ; EXEC",
    "MULTI ; WATCH {t}a ; SET {t}a 3 ; EXEC",
    "MULTI ; UNWATCH ; SET {t}a 4 ; EXEC",
    // What cannot be queued spoils the rest, wherever it stands.
    "MULTI ; GET ; SET {t}a 5 ; EXEC ; GET {t}a",
    "MULTI ; SET {t}a 6 ; NOSUCH a b ; EXEC ; GET {t}a",
    "MULTI ; SET {t}a 7 ; OBJECT NOSUCH {t}a ; INCR {t}a ; EXEC ; GET {t}a",
    "MULTI ; SET {t}a ; DISCARD ; SET {t}a 8 ; GET {t}a",
    // What fails when it is executed spoils nothing.
    "SET {t}s x ; MULTI ; LPUSH {t}s y ; SET {t}a 9 ; INCR {t}s ; EXEC ; GET {t}a",
    "MULTI ; BLPOP {t}none 0 ; EXEC",
    "WATCH {t}w ; SET {t}w 1 ; MULTI ; SET {t}a 10 ; EXEC ; GET {t}a",
    "WATCH {t}w ; GET {t}w ; MULTI ; SET {t}a 11 ; EXEC ; GET {t}a",
    "WATCH {t}w ; SET {t}w 2 ; UNWATCH ; MULTI ; SET {t}a 12 ; EXEC ; GET {t}a",
    "WATCH {t}w ; SET {t}w 3 ; MULTI ; DISCARD ; MULTI ; SET {t}a 13 ; EXEC ; GET {t}a",
    "WATCH {t}w ; SET {t}w 4 ; MULTI ; NOSUCH ; EXEC ; GET {t}a",
    "WATCH {t}w ; SET {t}w 5 ; MULTI ; EXEC ; MULTI ; EXEC",
    "MULTI ; SET {t}a 14 ; EXEC ; MULTI ; SET {t}a 15 ; EXEC ; GET {t}a",
    "MULTI ; EVAL return{1,redis.call('incr',KEYS[1])} 1 {t}n ; EXEC",
    "MULTI ; HSET {t}h a 1 ; HGETALL {t}h ; ZADD {t}z 1 m ; ZSCORE {t}z m ; EXEC",
    "MULTI ; SET {t}a 16 ; QUIT",
    "MULTI ; SET {t}a 17 ; RESET ; GET {t}a",
];

/// As somebody who may not SET, and where there is no memory left.
const REFUSED: &[&str] = &[
    "AUTH limited pw ; MULTI ; GET {t}a ; SET {t}a 1 ; GET {t}a ; EXEC ; GET {t}a",
    "AUTH limited pw ; MULTI ; SET {t}a 1 ; DISCARD ; MULTI ; GET {t}a ; EXEC",
    "AUTH limited pw ; MULTI ; GET {x}other ; EXEC",
    "AUTH nobody pw ; MULTI ; SET {t}a 2 ; EXEC",
    "CONFIG SET maxmemory 1 ; MULTI ; GET {t}a ; SET {t}a 1 ; EXEC ; GET {t}a ; CONFIG SET maxmemory 0",
];

fn words(script: &str) -> Vec<Vec<&str>> {
    script.split(';').map(|line| line.split_whitespace().collect()).collect()
}

/// All replies, each asked for alone or all at once. Settings are made by hand, since a proxy makes none.
fn talk(addr: &str, servers: &[String], proto: &str, script: &str, at_once: bool) -> Vec<String> {
    let mut c = Client::new(addr);
    if proto == "3" {
        c.ask(&["HELLO", "3"]);
    }
    let configure = |line: &[&str]| servers.iter().for_each(|addr| Client::new(addr).ok(line));
    let lines = words(script);
    let (settings, lines): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line[0] == "CONFIG");
    settings.first().map(|line| configure(line)).unwrap_or_default();
    let mut out = Vec::new();
    if at_once {
        let all: Vec<u8> = lines.iter().flat_map(|line| request(line)).collect();
        c.stream.write_all(&all).unwrap();
    }
    for line in &lines {
        if !at_once && c.stream.write_all(&request(line)).is_err() {
            break;
        }
        let Ok(reply) = c.try_receive() else { break };
        out.push(format!("{} -> {}", line.join(" "), reply.escape_ascii()));
    }
    settings.last().map(|line| configure(line)).unwrap_or_default();
    out
}

fn compare(direct: &Server, proxy: &Proxy, servers: &[String]) {
    for server in servers.iter().chain([&direct.addr()]) {
        Client::new(server).ok(&["ACL", "SETUSER", "limited", "on", ">pw", "~{t}*", "+@all", "-set"]);
    }
    for proto in ["2", "3"] {
        for script in SCRIPTS.iter().chain(REFUSED) {
            for at_once in [false, true] {
                direct.client().ask(&["FLUSHALL"]);
                let want = talk(&direct.addr(), &[direct.addr()], proto, script, at_once);
                proxy.client().ask(&["FLUSHALL"]);
                let got = talk(&proxy.addr, servers, proto, script, at_once);
                assert_eq!(got, want, "RESP{proto}, at once: {at_once}");
            }
        }
    }
}

#[test]
fn transactions_in_front_of_a_cluster_are_those_of_a_plain_server() {
    let direct = Server::start(&[]);
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    compare(&direct, &proxy, &cluster.addrs());
    // What no plain server says: one slot for all of it.
    for at_once in [false, true] {
        let script = "MULTI ; SET {t}a 1 ; SET other 2 ; EXEC ; GET {t}a";
        let said = talk(&proxy.addr, &[], "2", script, at_once).join("\n");
        assert!(said.contains("SET other 2 -> -CROSSSLOT") && said.contains("EXEC -> -EXECABORT"), "{said}");
        assert!(said.ends_with("GET {t}a -> $-1\\r\\n"), "{said}");
    }
}

#[test]
fn transactions_of_split_servers_are_those_of_a_plain_server() {
    let direct = Server::start(&[]);
    let master = Server::start(&[]);
    let proxy = Proxy::start("split", &[master.addr()], "");
    compare(&direct, &proxy, &[master.addr()]);
}

fn reads(server: &Server) -> i64 {
    let text = server.client().text(&["INFO", "stats"]);
    text.lines().find_map(|l| l.strip_prefix("total_reads_processed:")).unwrap().parse().unwrap()
}

#[test]
fn what_is_queued_at_once_is_one_write_to_the_server() {
    let server = Server::start(&[]);
    // Nothing of the proxy's own is read meanwhile.
    let proxy = Proxy::start("split", &[server.addr()], "[times]\nrefresh_ms = 600000\n");
    let mut c = proxy.client();
    c.ok(&["SET", "n", "0"]);
    let mut all = request(&["MULTI"]);
    (0..200).for_each(|_| all.extend(request(&["INCR", "n"])));
    all.extend(request(&["EXEC"]));
    let before = reads(&server);
    for turn in 1..=20 {
        c.stream.write_all(&all).unwrap();
        assert_eq!(c.receive(), b"+OK\r\n");
        for _ in 0..200 {
            assert_eq!(c.receive(), b"+QUEUED\r\n");
        }
        let done = c.receive();
        assert!(done.ends_with(format!(":{}\r\n", turn * 200).as_bytes()), "{}", done.escape_ascii());
    }
    // One for each transaction, and few more if a write of the client came in two pieces.
    let count = reads(&server) - before;
    assert!((20..100).contains(&count), "the server was told in {count} pieces");
}

#[test]
fn a_large_value_goes_through_a_transaction() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let mut c = proxy.client();
    let value = vec![b'x'; 100 << 20];
    let mut write = c.stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for line in [&[&b"MULTI"[..]][..], &[b"SET", b"v", &value], &[b"STRLEN", b"v"], &[b"EXEC"]] {
            write.write_all(&request(line)).unwrap();
        }
    });
    for want in [&b"+OK\r\n"[..], b"+QUEUED\r\n", b"+QUEUED\r\n", b"*2\r\n+OK\r\n:104857600\r\n"] {
        assert_eq!(c.receive(), want);
    }
    writer.join().unwrap();
}
