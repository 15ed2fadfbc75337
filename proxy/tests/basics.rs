//! What a plain client sees in front of a cluster.

mod common;

use common::{Cluster, Proxy};

#[test]
fn a_plain_client_uses_a_cluster_as_one_server() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs()[..1], "");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    assert_eq!(c.text(&["GET", "a"]), "1");
    for i in 0..200 {
        c.send(&["SET", &format!("k{i}"), &format!("v{i}")]);
    }
    for _ in 0..200 {
        assert_eq!(c.receive(), b"+OK\r\n");
    }
    for i in 0..200 {
        c.send(&["GET", &format!("k{i}")]);
    }
    for i in 0..200 {
        let want = format!("v{i}");
        assert_eq!(c.receive(), format!("${}\r\n{want}\r\n", want.len()).as_bytes());
    }
    assert_eq!(c.int(&["DBSIZE"]), 201);
    // Every key once, whatever shard it is on.
    let (mut cursor, mut seen) = ("0".to_string(), Vec::new());
    loop {
        let reply = c.ask(&["SCAN", &cursor, "COUNT", "20"]);
        let value = cacheyard_proxy::resp::Value::parse(&reply).unwrap();
        let pair = value.list().unwrap();
        seen.extend(pair[1].list().unwrap().iter().map(|k| k.text().unwrap().to_vec()));
        cursor = String::from_utf8(pair[0].text().unwrap().to_vec()).unwrap();
        if cursor == "0" {
            break;
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 201);
    // One shard by its address, which it is told.
    let nodes = c.text(&["ICLUSTER", "NODES"]);
    assert!(cluster.addrs().iter().all(|addr| nodes.contains(&format!(" {addr}@"))), "{nodes}");
    assert!(c.show(&["ICLUSTER", "MEET"]).starts_with("-ERR unknown subcommand"));
    let reply = c.show(&["SCAN", "0", "COUNT", "1000", &cluster.addrs()[1]]);
    assert!(reply.starts_with("*2\\r\\n$1\\r\\n0"), "{reply}");

    assert_eq!(c.show(&["MSET", "x", "1", "y", "2", "z", "3"]), "+OK\\r\\n");
    assert_eq!(c.ask(&["MGET", "z", "nope", "x", "y"]), b"*4\r\n$1\r\n3\r\n$-1\r\n$1\r\n1\r\n$1\r\n2\r\n");
    assert_eq!(c.int(&["EXISTS", "x", "x", "y", "nope"]), 3);
    assert_eq!(c.int(&["DEL", "x", "y", "z", "nope"]), 3);
    c.int(&["SADD", "s1", "a", "b", "c"]);
    c.int(&["SADD", "s2", "b", "c", "d"]);
    c.int(&["SADD", "s3", "c", "x"]);
    assert_eq!(c.int(&["SUNIONSTORE", "out", "s1", "s2", "s3"]), 5);
    assert_eq!(c.int(&["SCARD", "out"]), 5);
    assert_eq!(c.ask(&["SINTER", "s1", "s2", "s3"]), b"*1\r\n$1\r\nc\r\n");
    assert_eq!(c.ask(&["SDIFF", "s1", "s2", "s3"]), b"*1\r\n$1\r\na\r\n");
    assert_eq!(c.int(&["SDIFFSTORE", "out", "s3", "s3"]), 0);
    assert_eq!(c.int(&["EXISTS", "out"]), 0);
    c.int(&["ZADD", "z1", "1", "a", "2", "b"]);
    c.int(&["ZADD", "z2", "10", "a", "0.5", "c"]);
    assert_eq!(c.int(&["ZUNIONSTORE", "zo", "3", "z1", "z2", "s3", "WEIGHTS", "2", "1", "1", "AGGREGATE", "SUM"]), 4);
    assert_eq!(
        c.ask(&["ZRANGE", "zo", "0", "-1", "WITHSCORES"]),
        b"*8\r\n$1\r\nx\r\n$1\r\n1\r\n$1\r\nc\r\n$3\r\n1.5\r\n$1\r\nb\r\n$1\r\n4\r\n$1\r\na\r\n$2\r\n12\r\n"
    );
    assert_eq!(c.int(&["ZINTERSTORE", "zo", "2", "z1", "z2", "AGGREGATE", "MAX"]), 1);
    assert_eq!(c.text(&["ZSCORE", "zo", "a"]), "10");

    assert_eq!(c.show(&["RENAME", "k1", "k2"]), "-CROSSSLOT Keys in request don\\'t hash to the same slot\\r\\n");
    assert!(c.show(&["BGSAVE"]).starts_with("-ERR unknown command \\'BGSAVE\\'"));
    assert!(c.show(&["SELECT", "1"]).starts_with("-ERR SELECT"));
    c.ok(&["SELECT", "0"]);
    c.ok(&["FLUSHALL"]);
    assert_eq!(c.int(&["DBSIZE"]), 0);
    assert!(c.text(&["INFO"]).contains("redis_mode:standalone"));

    // Transactions and commands that wait.
    c.ok(&["MULTI"]);
    assert_eq!(c.show(&["PING"]), "+QUEUED\\r\\n");
    assert_eq!(c.show(&["SET", "{t}a", "1"]), "+QUEUED\\r\\n");
    assert_eq!(c.show(&["INCR", "{t}a"]), "+QUEUED\\r\\n");
    assert_eq!(c.ask(&["EXEC"]), b"*3\r\n+PONG\r\n+OK\r\n:2\r\n");
    let mut other = proxy.client();
    c.ok(&["WATCH", "{t}a"]);
    other.ok(&["SET", "{t}a", "5"]);
    c.ok(&["MULTI"]);
    c.ask(&["INCR", "{t}a"]);
    assert_eq!(c.ask(&["EXEC"]), b"*-1\r\n");
    assert_eq!(c.text(&["GET", "{t}a"]), "5");
    c.send(&["BLPOP", "list", "5"]);
    other.int(&["RPUSH", "list", "x"]);
    assert_eq!(c.receive(), b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
    // A group may have the name of an option, and its reader still holds up nobody else.
    c.ok(&["XGROUP", "CREATE", "{t}stream", "streams", "$", "MKSTREAM"]);
    c.send(&["XREADGROUP", "GROUP", "streams", "me", "BLOCK", "700", "STREAMS", "{t}stream", ">"]);
    let begun = std::time::Instant::now();
    other.ok(&["SET", "{t}a", "x"]);
    assert!(begun.elapsed().as_millis() < 500);
    assert_eq!(c.receive(), b"*-1\r\n");
    // Somebody who waits holds up nobody else.
    c.send(&["BLPOP", "list", "1"]);
    for _ in 0..100 {
        other.ok(&["SET", "list2", "x"]);
    }
    assert_eq!(c.receive(), b"*-1\r\n");

    c.send(&["SUBSCRIBE", "news", "more"]);
    assert_eq!(c.receive(), b"*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n");
    assert_eq!(c.receive(), b"*3\r\n$9\r\nsubscribe\r\n$4\r\nmore\r\n:2\r\n");
    other.int(&["PUBLISH", "news", "hello"]);
    assert_eq!(c.receive(), b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
    assert!(c.show(&["GET", "a"]).contains("only (P|S)SUBSCRIBE"));
    c.send(&["UNSUBSCRIBE"]);
    c.receive();
    c.receive();
    assert_eq!(c.show(&["PING"]), "+PONG\\r\\n");
}

#[test]
fn messages_can_all_go_to_one_shard() {
    let cluster = Cluster::start(2, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "dispatch_pubsub_to_fixed_shard = true\n");
    let (mut listener, mut speaker) = (proxy.client(), proxy.client());
    for i in 0..6 {
        let channel = format!("news{i}");
        listener.send(&["SUBSCRIBE", &channel]);
        listener.receive();
        speaker.int(&["PUBLISH", &channel, "hello"]);
        let want = format!("*3\r\n$7\r\nmessage\r\n$5\r\n{channel}\r\n$5\r\nhello\r\n");
        assert_eq!(listener.receive(), want.as_bytes());
    }
    // The shard with slot 0 has seen all of it, the other nothing.
    let calls = |node: usize| {
        let text = cluster.nodes[node].client().text(&["INFO", "commandstats"]);
        ["publish", "subscribe"].map(|name| text.contains(&format!("cmdstat_{name}:")))
    };
    assert_eq!((calls(0), calls(1)), ([true, true], [false, false]));
}
