//! `read_own_writes`: whoever has written reads nothing older, however far the replica is behind.

mod common;

use common::{Proxy, Relay, Server, until};

fn start(more: &str) -> (Server, Relay, Server, Proxy) {
    let master = Server::start(&[]);
    let relay = Relay::start(&master.addr());
    let replica = Server::start(&["--replicaof", &format!("{} 6379", relay.host)]);
    until(20.0, "replication", || replica.is_replicating());
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], more);
    until(5.0, "the replica", || proxy.state().contains("\"role\":\"replica\",\"healthy\":true"));
    (master, relay, replica, proxy)
}

#[test]
fn without_the_option_a_replica_that_lags_is_read() {
    let (_master, relay, replica, proxy) = start("");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "old"]);
    until(5.0, "replication", || replica.client().ask(&["GET", "a"]) == b"$3\r\nold\r\n");
    relay.hold(true);
    c.ok(&["SET", "a", "new"]);
    assert_eq!(c.text(&["GET", "a"]), "old");
    relay.hold(false);
    until(5.0, "replication", || c.text(&["GET", "a"]) == "new");
}

#[test]
fn with_the_option_nobody_reads_what_is_older_than_his_own_writes() {
    let (master, relay, replica, proxy) = start("read_own_writes = true\n");
    let (mut c, mut other) = (proxy.client(), proxy.client());
    c.ok(&["SET", "a", "old"]);
    until(5.0, "replication", || replica.client().ask(&["GET", "a"]) == b"$3\r\nold\r\n");
    relay.hold(true);
    // Every way to write.
    let script = "return redis.call('set', KEYS[1], ARGV[1])";
    let ways: [&[&[&str]]; 5] = [
        &[&["SET", "a", "1"]],
        &[&["EVAL", script, "1", "a", "2"]],
        &[&["MULTI"], &["SET", "a", "3"], &["EXEC"]],
        &[&["WATCH", "b"], &["MULTI"], &["SET", "a", "4"], &["EXEC"]],
        &[&["RPUSH", "l", "5"], &["BLMOVE", "l", "m", "LEFT", "LEFT", "1"], &["SET", "a", "5"]],
    ];
    for (i, way) in ways.iter().enumerate() {
        for at_once in [false, true] {
            c.ok(&["SET", "a", "none"]);
            for line in *way {
                c.send(line);
                if !at_once {
                    c.receive();
                }
            }
            c.send(&["GET", "a"]);
            if at_once {
                way.iter().for_each(|_| drop(c.receive()));
            }
            let want = format!("$1\r\n{}\r\n", i + 1);
            assert_eq!(c.receive().escape_ascii().to_string(), want.as_bytes().escape_ascii().to_string());
            for _ in 0..50 {
                assert_eq!(c.ask(&["GET", "a"]), want.as_bytes());
            }
        }
    }
    // Who has written nothing reads what the replica has.
    assert_eq!(other.text(&["GET", "a"]), "old");
    assert!(master.calls("get") > 400);
    // When the replica has everything, it is asked again.
    relay.hold(false);
    let before = replica.calls("get");
    until(5.0, "reads at the replica", || {
        assert_eq!(c.text(&["GET", "a"]), "5");
        replica.calls("get") > before + 20
    });
    let before = master.calls("get");
    for _ in 0..100 {
        assert_eq!(c.text(&["GET", "a"]), "5");
    }
    assert_eq!(master.calls("get"), before);
    // Its own writes, one after the other, while replication runs as it runs.
    for i in 0..500 {
        let want = i.to_string();
        c.ok(&["SET", "n", &want]);
        assert_eq!(c.text(&["GET", "n"]), want);
        if i % 7 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            assert_eq!(c.text(&["GET", "n"]), want);
        }
    }
}

#[test]
fn own_writes_are_read_after_the_master_has_changed() {
    let (master, _relay, replica, proxy) = start("read_own_writes = true\n");
    let mut c = proxy.client();
    for i in 0..100 {
        assert_eq!(c.int(&["INCR", "n"]), i + 1);
    }
    until(5.0, "replication", || replica.client().ask(&["GET", "n"]) == b"$3\r\n100\r\n");
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
    master.client().ok(&["REPLICAOF", &replica.host, "6379"]);
    let before = master.calls("get");
    let mut next = 100;
    until(20.0, "reads at the new replica", || {
        next += 1;
        assert_eq!(c.int(&["INCR", "n"]), next);
        for _ in 0..10 {
            assert_eq!(c.text(&["GET", "n"]), next.to_string());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        master.calls("get") > before + 20
    });
}
