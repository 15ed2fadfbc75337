//! Several databases in front of a cluster: to its clients it is what a plain server with so many databases is.

mod common;

use std::collections::BTreeSet;

use cacheyard_proxy::resp::Value;
use common::{Client, Cluster, Proxy, Server, until};

const MORE: &str = "multi_db = 256\n";

fn texts(reply: &[u8]) -> BTreeSet<String> {
    let value = Value::parse(reply).unwrap();
    let list = value.list().unwrap_or_else(|| panic!("{}", reply.escape_ascii()));
    list.iter().map(|v| String::from_utf8_lossy(v.text().unwrap()).into_owned()).collect()
}

/// All keys by SCAN.
fn scanned(c: &mut Client, more: &[&str]) -> BTreeSet<String> {
    let (mut cursor, mut seen) = ("0".to_string(), BTreeSet::new());
    loop {
        let reply = c.ask(&[&["SCAN", &cursor, "COUNT", "7"], more].concat());
        let value = Value::parse(&reply).unwrap();
        let pair = value.list().unwrap_or_else(|| panic!("{}", reply.escape_ascii()));
        cursor = String::from_utf8_lossy(pair[0].text().unwrap()).into_owned();
        for key in pair[1].list().unwrap() {
            assert!(seen.insert(String::from_utf8_lossy(key.text().unwrap()).into_owned()));
        }
        if cursor == "0" {
            return seen;
        }
    }
}

/// A pair that is asked the same.
struct Both {
    plain: Client,
    proxied: Client,
}

impl Both {
    fn ask(&mut self, line: &str) -> Vec<u8> {
        let words: Vec<&str> = line.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        let (want, got) = (self.plain.ask(&words), self.proxied.ask(&words));
        assert_eq!(got.escape_ascii().to_string(), want.escape_ascii().to_string(), "{line}");
        assert!(!got.contains(&1), "{line}: {}", got.escape_ascii());
        got
    }
}

#[test]
fn commands_on_keys_are_those_of_a_plain_server_in_every_database() {
    let (server, cluster) = (Server::start(&["--databases", "256"]), Cluster::start(3, false));
    let proxy = Proxy::start("cluster", &cluster.addrs(), MORE);
    for protocol in ["2", "3"] {
        let mut both = Both { plain: server.client(), proxied: proxy.client() };
        both.plain.ask(&["HELLO", protocol]);
        both.proxied.ask(&["HELLO", protocol]);
        for db in ["0", "1", "7", "255"] {
            both.ask(&format!("SELECT {db}"));
            for line in LINES.lines().filter(|line| !line.is_empty()) {
                both.ask(line);
            }
            // Nothing waits: what is there already, and what is not.
            for line in BLOCKING.lines().filter(|line| !line.is_empty()) {
                both.ask(line);
            }
            let mine = texts(&both.proxied.ask(&["KEYS", "*"]));
            assert_eq!(mine, texts(&both.plain.ask(&["KEYS", "*"])));
            assert_eq!(mine, scanned(&mut both.proxied, &[]));
            assert_eq!(both.proxied.int(&["DBSIZE"]), mine.len() as i64);
        }
        both.ask("SELECT 7");
        both.ask("FLUSHDB");
        both.ask("DBSIZE");
        both.ask("FLUSHALL");
        both.ask("SELECT 0");
        both.ask("DBSIZE");
    }
}

/// Keys with one tag for what needs one slot.
const LINES: &str = "
SET a 1
GET a
INCR a
APPEND a x
SET {t}a 5
SET {t}b 6
MSET x 1 y 2 z 3
MGET x nope y {t}a
DEL x nope
EXISTS x y z
TOUCH y z
RENAME {t}a {t}c
RENAMENX {t}b {t}c
COPY {t}b {t}d
TYPE a
TTL a
EXPIRE a 1000
PERSIST a
OBJECT ENCODING a
LPUSH {t}l 1 2 3
LMPOP 2 {t}none {t}l LEFT COUNT 2
LMPOP 1 {t}none LEFT
RPUSH {t}l a b c
LMOVE {t}l {t}m LEFT RIGHT
LRANGE {t}l 0 -1
SORT {t}l ALPHA STORE {t}sorted
LRANGE {t}sorted 0 -1
SORT {t}l BY nosort
ZADD {t}z 1 a 2 b 3 c
ZMPOP 2 {t}none {t}z MIN
ZRANGE {t}z 0 -1 WITHSCORES
ZADD z1 1 a
ZADD z2 2 a
ZUNIONSTORE out 2 z1 z2
ZSCORE out a
ZRANGESTORE {t}zs {t}z 0 -1
SADD s1 a b
SADD s2 b c
SINTER s1 s2
SUNIONSTORE so s1 s2
SCARD so
SINTERSTORE so s1 s2
SMEMBERS so
HSET h f v
HGETALL h
HSCAN h 0
PFADD {t}p a b
PFCOUNT {t}p
PFMERGE {t}q {t}p
GEOADD {t}g 13 38 here
GEORADIUS {t}g 13 38 10 km STORE {t}gs
ZCARD {t}gs
BITOP NOT {t}n {t}c
XADD {t}x 1-1 f v
XADD {t}w 1-1 f v
XREAD COUNT 5 STREAMS {t}x {t}w 0 0
XREAD STREAMS {t}x 9
XGROUP CREATE {t}x grp 0
XREADGROUP GROUP grp me STREAMS {t}x >
XPENDING {t}x grp
XINFO GROUPS {t}x
XAUTOCLAIM {t}x grp other 0 0
XACK {t}x grp 1-1
EVAL return{KEYS[1],ARGV[1],redis.call('get',KEYS[1]),KEYS[2]} 2 {t}c {t}b v
EVAL return{err='no'} 1 {t}c
EVAL return{ok=KEYS[1]} 1 {t}c
EVAL_RO return{1,{KEYS[1]}} 1 {t}c
EVALSHA ffffffffffffffffffffffffffffffffffffffff 1 a
LCS {t}c {t}d
GETDEL {t}d
MEMORY USAGE nope
COMMAND GETKEYS MGET a b
WATCH {t}c
MULTI
SET {t}c 1
LMPOP 1 {t}l LEFT
XREAD STREAMS {t}x 0
EVAL return{KEYS[1]} 1 {t}c
PING
BLPOP {t}l 0
ZMPOP 1 {t}none MAX
GET {t}c
EXEC
MULTI
INCR {t}c
DISCARD
GET {t}c
GET
EVAL x notanumber a
LPUSH a 1
UNLINK {t}l
SELECT 999
PUBLISH news hello
PUBSUB CHANNELS
";

const BLOCKING: &str = "
RPUSH {t}q 1 2 3 4
BLPOP {t}none {t}q 1
BRPOP {t}q 1
BLMPOP 1 2 {t}none {t}q LEFT
BLMOVE {t}q {t}q2 LEFT RIGHT 1
BRPOPLPUSH {t}q2 {t}q 1
BLPOP {t}none 0.01
ZADD {t}bz 1 a 2 b 3 c
BZPOPMIN {t}none {t}bz 1
BZPOPMAX {t}bz 1
BZMPOP 1 1 {t}bz MAX
BZMPOP 0.01 1 {t}bz MAX
XREAD COUNT 1 BLOCK 10 STREAMS {t}x {t}w 0 0
XREAD BLOCK 10 STREAMS {t}x $
XREADGROUP GROUP grp me BLOCK 10 STREAMS {t}x 0
";

#[test]
fn databases_see_nothing_of_each_other() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), MORE);
    let mut all: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for (db, c) in all.iter_mut().enumerate() {
        c.ok(&["SELECT", &db.to_string()]);
        for i in 0..30 * db {
            c.ok(&["SET", &format!("k{i}"), &db.to_string()]);
        }
    }
    // The first is empty, and not a key is shown there.
    assert!(all[0].ask(&["RANDOMKEY"]).starts_with(b"$-1"));
    all[0].ok(&["SET", "own", "0"]);
    for (db, c) in all.iter_mut().enumerate() {
        let want = if db == 0 { 1 } else { 30 * db };
        assert_eq!(c.int(&["DBSIZE"]), want as i64);
        assert_eq!(texts(&c.ask(&["KEYS", "*"])).len(), want);
        assert_eq!(scanned(c, &[]).len(), want);
        assert_eq!(scanned(c, &["MATCH", "k1?"]).len(), if db == 0 { 0 } else { 10 });
        assert_eq!(scanned(c, &["TYPE", "list"]).len(), 0);
        assert!(c.text(&["RANDOMKEY"]).starts_with(if db == 0 { "own" } else { "k" }));
        let shards: usize = cluster
            .addrs()
            .iter()
            .map(|addr| {
                let reply = c.ask(&["SCAN", "0", "COUNT", "10000", addr]);
                Value::parse(&reply).unwrap().list().unwrap()[1].list().unwrap().len()
            })
            .sum();
        assert_eq!(shards, want);
        if db > 0 {
            assert_eq!(c.text(&["GET", "k1"]), db.to_string());
        }
    }
    let keyspace = |c: &mut Client| -> Vec<String> {
        let text = c.text(&["INFO", "keyspace"]);
        text.lines().filter(|l| l.starts_with("db")).map(|l| l.split(",expires").next().unwrap().into()).collect()
    };
    until(5.0, "them to be counted", || {
        keyspace(&mut all[2]) == ["db0:keys=1", "db1:keys=30", "db2:keys=60", "db3:keys=90"]
    });
    assert!(all[1].text(&["INFO"]).contains("redis_mode:standalone"));
    // Emptying one leaves the others, whichever it is.
    all[2].ok(&["FLUSHDB", "ASYNC"]);
    let sizes = |all: &mut [Client]| all.iter_mut().map(|c| c.int(&["DBSIZE"])).collect::<Vec<_>>();
    assert_eq!(sizes(&mut all), [1, 30, 0, 90]);
    assert!(all[2].ask(&["RANDOMKEY"]).starts_with(b"$-1"));
    all[0].ok(&["FLUSHDB"]);
    assert_eq!(sizes(&mut all), [0, 30, 0, 90]);
    assert!(all[0].show(&["FLUSHDB", "SOON"]).starts_with("-ERR syntax"));

    // What cannot be said is refused, and nobody reaches another's keys by their stored names.
    assert!(all[1].show(&["MOVE", "k1", "2"]).starts_with("-ERR unknown command \\'MOVE\\'"));
    assert!(all[1].show(&["SWAPDB", "0", "1"]).starts_with("-ERR unknown command"));
    assert!(all[1].show(&["COPY", "k1", "k1", "DB", "2"]).starts_with("-ERR COPY to another"));
    assert!(all[0].show(&["MONITOR", &cluster.addrs()[0]]).starts_with("-ERR"));
    for c in &mut all {
        assert!(c.show(&["GET", "\x013\x01k1"]).starts_with("-ERR keys that begin"));
    }
    assert_eq!(all[3].text(&["GET", "k1"]), "3");
    assert!(all[0].show(&["SELECT", "256"]).starts_with("-ERR DB index is out of range"));
    assert!(all[0].show(&["SELECT", "-1"]).starts_with("-ERR"));
    assert!(all[1].text(&["CLIENT", "INFO"]).contains(" db=1 "));
    // Channels are of no database.
    all[3].send(&["SSUBSCRIBE", "news"]);
    assert_eq!(all[3].receive(), b"*3\r\n$10\r\nssubscribe\r\n$4\r\nnews\r\n:1\r\n");
    assert_eq!(all[1].int(&["SPUBLISH", "news", "hello"]), 1);
    assert_eq!(all[3].receive(), b"*3\r\n$8\r\nsmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
}

#[test]
fn logs_show_keys_as_clients_know_them() {
    let cluster = Cluster::start(2, false);
    for node in &cluster.nodes {
        node.client().ok(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    }
    let more = format!("{MORE}[slowlog]\nslower_than_us = 0\n");
    let proxy = Proxy::start("cluster", &cluster.addrs(), &more);
    let (mut c, mut watcher) = (proxy.client(), proxy.client());
    watcher.ok(&["MONITOR"]);
    c.ok(&["SELECT", "9"]);
    c.ok(&["SET", "my-key", "1"]);
    let mut said = watcher.receive();
    if !said.windows(6).any(|w| w == b"my-key") {
        said = watcher.receive();
    }
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("[9 ") && said.ends_with("] \"SET\" \"my-key\" \"1\"\r\n"), "{said}");
    let log = proxy.control("slowlog");
    assert!(log.contains("[\"SET\",\"my-key\",\"1\"]"), "{log}");
    let reply = c.ask(&["SLOWLOG", "GET", "-1"]);
    let shown = reply.escape_ascii().to_string();
    assert!(shown.contains("$6\\r\\nmy-key\\r\\n") && !shown.contains("\\x01"), "{shown}");
}

#[test]
fn a_pipeline_changes_databases_in_its_order_and_one_that_goes_takes_its_clients_along() {
    let cluster = Cluster::start(2, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), MORE);
    let mut c = proxy.client();
    for i in 0..300 {
        c.send(&["SELECT", &(i % 3).to_string()]);
        c.send(&["INCR", "n"]);
        c.send(&["INCR", &format!("n{i}")]);
        c.send(&["EVAL", "return KEYS[1]", "1", "n"]);
    }
    for i in 0..300 {
        assert_eq!(c.receive(), b"+OK\r\n");
        assert_eq!(c.receive(), format!(":{}\r\n", i / 3 + 1).as_bytes());
        assert_eq!(c.receive(), b":1\r\n");
        assert_eq!(c.receive(), b"$1\r\nn\r\n");
    }
    let mut other = proxy.client();
    other.ok(&["SELECT", "5"]);
    c.ok(&["SELECT", "1"]);
    assert_eq!(proxy.change(|text| text.replace("multi_db = 256", "multi_db = 4")), "ok\n");
    assert!(other.try_ask(&["GET", "n"]).is_err());
    assert_eq!(c.text(&["GET", "n"]), "100");
    assert_eq!(proxy.change(|text| text.replace("multi_db = 4", "multi_db = 0")), "ok\n");
    assert!(c.try_ask(&["GET", "n"]).is_err());
    assert!(proxy.client().show(&["SELECT", "1"]).starts_with("-ERR SELECT is not allowed"));
}
