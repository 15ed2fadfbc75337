//! Nothing is lost and nothing is done twice while slots move and masters change.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cacheyard_proxy::resp::Value;
use cacheyard_proxy::slot::slot;
use common::{Client, Cluster, Proxy, Server, until};

const CLIENTS: usize = 32;
const COUNTERS: usize = 8;

#[derive(Default)]
struct Seen {
    /// Tokens of transactions that were acknowledged, and of those that may have happened.
    done: Vec<String>,
    unknown: Vec<String>,
    plain_done: HashMap<String, i64>,
    plain_unknown: HashMap<String, i64>,
    aborted: u64,
    odd: Vec<String>,
}

fn worker(addr: &str, n: usize, stop: &AtomicBool) -> Seen {
    let mut c = Client::new(addr);
    let mut seen = Seen::default();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let key = format!("{{c{}}}", (n + turn) % COUNTERS);
        let token = format!("{n}-{turn}");
        loop {
            let watched = c.ask(&["WATCH", &key]);
            if watched != b"+OK\r\n" {
                seen.odd.push(format!("WATCH {}", watched.escape_ascii()));
                break;
            }
            let reply = c.ask(&["GET", &key]);
            let value = match Value::parse(&reply) {
                Some(Value::Text(text)) => String::from_utf8_lossy(text).parse::<i64>().unwrap(),
                Some(Value::Nil) => 0,
                _ => {
                    seen.odd.push(format!("GET {}", reply.escape_ascii()));
                    c.ask(&["UNWATCH"]);
                    break;
                }
            };
            let log = format!("{key}log");
            let next = (value + 1).to_string();
            c.send(&["MULTI"]);
            c.send(&["SET", &key, &next]);
            c.send(&["RPUSH", &log, &token]);
            c.send(&["EXEC"]);
            for _ in 0..3 {
                c.receive();
            }
            let reply = c.receive();
            match Value::parse(&reply) {
                Some(Value::List(_)) => {
                    seen.done.push(token.clone());
                    break;
                }
                Some(Value::Nil) => seen.aborted += 1,
                _ => {
                    let text = reply.escape_ascii().to_string();
                    if text.contains("may have been executed") {
                        seen.unknown.push(token.clone());
                    } else if !text.starts_with("-EXECABORT") {
                        seen.odd.push(format!("EXEC {text}"));
                    }
                    break;
                }
            }
        }
        let plain = format!("{key}plain");
        let reply = c.ask(&["INCR", &plain]);
        let text = reply.escape_ascii().to_string();
        if reply[0] == b':' {
            *seen.plain_done.entry(plain).or_default() += 1;
        } else if text.contains("may have been executed") {
            *seen.plain_unknown.entry(plain).or_default() += 1;
        } else {
            seen.odd.push(format!("INCR {text}"));
        }
    }
    seen
}

fn owner(cluster: &Cluster, slot: u16) -> usize {
    let text = cluster.nodes[0].client().text(&["CLUSTER", "NODES"]);
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        for range in &words[8..] {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            if let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) {
                if (from..=to).contains(&slot) {
                    let host = words[1].split(':').next().unwrap();
                    return cluster.nodes.iter().position(|n| n.host == host).unwrap();
                }
            }
        }
    }
    panic!("nobody has slot {slot}:\n{text}")
}

/// Moves a slot as redis-cli does, key by key.
fn move_slot(cluster: &Cluster, slot: u16, to: usize) {
    let from = owner(cluster, slot);
    if from == to {
        return;
    }
    let (mut source, mut target) = (cluster.nodes[from].client(), cluster.nodes[to].client());
    let number = slot.to_string();
    let (source_id, target_id) = (cluster.id(from), cluster.id(to));
    target.ok(&["CLUSTER", "SETSLOT", &number, "IMPORTING", &source_id]);
    source.ok(&["CLUSTER", "SETSLOT", &number, "MIGRATING", &target_id]);
    loop {
        let reply = source.ask(&["CLUSTER", "GETKEYSINSLOT", &number, "1"]);
        let Some(Value::List(keys)) = Value::parse(&reply) else { panic!("{}", reply.escape_ascii()) };
        let Some(Value::Text(key)) = keys.first() else { break };
        let key = String::from_utf8_lossy(key);
        source.ask(&["MIGRATE", &cluster.nodes[to].host, "6379", &key, "0", "5000"]);
        thread::sleep(Duration::from_millis(3));
    }
    target.ok(&["CLUSTER", "SETSLOT", &number, "NODE", &target_id]);
    source.ok(&["CLUSTER", "SETSLOT", &number, "NODE", &target_id]);
}

fn is_master(cluster: &Cluster, i: usize) -> bool {
    cluster.nodes[i].client().text(&["INFO", "replication"]).contains("role:master")
}

/// Many clients count while `disturb` does what it does, turn by turn: it says how often masters have changed.
fn counters_are_exact(proxy: &Proxy, mut disturb: impl FnMut(usize) -> usize) {
    let stop = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (addr, stop) = (proxy.addr.clone(), stop.clone());
            thread::spawn(move || worker(&addr, n, &stop))
        })
        .collect();
    let begun = Instant::now();
    let (mut turn, mut changes) = (0, 0);
    while begun.elapsed() < Duration::from_secs(8) || (changes == 0 && begun.elapsed() < Duration::from_secs(40)) {
        turn += 1;
        changes += disturb(turn);
        thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = running.into_iter().map(|t| t.join().unwrap()).collect();
    let odd: Vec<&String> = seen.iter().flat_map(|s| &s.odd).collect();
    assert!(odd.is_empty(), "{} odd replies: {:?}", odd.len(), &odd[..odd.len().min(10)]);

    let mut c = proxy.client();
    let mut log: HashMap<String, usize> = HashMap::new();
    for i in 0..COUNTERS {
        let key = format!("{{c{i}}}");
        // In a transaction, so that no replica is asked.
        c.ok(&["MULTI"]);
        c.ask(&["GET", &key]);
        c.ask(&["LRANGE", &format!("{key}log"), "0", "-1"]);
        c.ask(&["GET", &format!("{key}plain")]);
        let reply = c.ask(&["EXEC"]);
        let value = Value::parse(&reply).unwrap();
        let [count, tokens, plain_count] = value.list().unwrap() else { panic!("{value:?}") };
        let tokens = tokens.list().unwrap();
        for token in tokens {
            *log.entry(String::from_utf8_lossy(token.text().unwrap()).into_owned()).or_default() += 1;
        }
        assert_eq!(count.int(), Some(tokens.len() as i64), "an update of {key} was lost");
        let plain = format!("{key}plain");
        let done: i64 = seen.iter().filter_map(|s| s.plain_done.get(&plain)).sum();
        let unknown: i64 = seen.iter().filter_map(|s| s.plain_unknown.get(&plain)).sum();
        let value = plain_count.int().unwrap();
        assert!((done..=done + unknown).contains(&value), "{plain}: {value}, acknowledged {done}, unknown {unknown}");
    }
    let done: usize = seen.iter().map(|s| s.done.len()).sum();
    for token in seen.iter().flat_map(|s| &s.done) {
        assert_eq!(log.remove(token), Some(1), "{token} was acknowledged");
    }
    for token in seen.iter().flat_map(|s| &s.unknown) {
        assert!(log.remove(token).unwrap_or(0) <= 1);
    }
    assert!(log.is_empty(), "done without having been acknowledged: {log:?}");
    let unknown: usize = seen.iter().map(|s| s.unknown.len()).sum();
    let aborted: u64 = seen.iter().map(|s| s.aborted).sum();
    println!(
        "{done} transactions, {aborted} aborted, {unknown} unknown, {changes} masters changed in {turn} turns, {} \
         redirections",
        proxy.number("redirections")
    );
    assert!(done > 200 && changes > 0, "only {done} transactions, {changes} changes of master");
}

#[test]
fn counters_are_exact_while_slots_move_and_masters_change() {
    let cluster = Cluster::start(3, true);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "[times]\nretry_ms = 10000\n");
    counters_are_exact(&proxy, |turn| {
        let slot = slot(format!("c{}", turn % COUNTERS).as_bytes());
        let masters: Vec<usize> = (0..6).filter(|i| is_master(&cluster, *i)).collect();
        let to = masters[turn % masters.len()];
        move_slot(&cluster, slot, to);
        if turn % 6 > 0 {
            return 0;
        }
        // A planned change of master: nothing that was acknowledged may be lost.
        let replica = (0..6).find(|i| !is_master(&cluster, *i)).unwrap();
        let replica = (0..6).cycle().skip(turn).find(|i| !is_master(&cluster, *i)).unwrap_or(replica);
        let mut client = cluster.nodes[replica].client();
        // The server may let the request lapse; what counts is that some succeed.
        let end = Instant::now() + Duration::from_secs(6);
        let asked = client.ask(&["CLUSTER", "FAILOVER"]) == b"+OK\r\n";
        while asked && Instant::now() < end && !is_master(&cluster, replica) {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(200));
        usize::from(is_master(&cluster, replica))
    });
}

#[test]
fn counters_are_exact_while_the_master_of_split_servers_changes() {
    let first = Server::start(&[]);
    let second = Server::start(&["--replicaof", &format!("{} 6379", first.host)]);
    let servers = [first, second];
    until(20.0, "replication", || servers[1].is_replicating());
    let addrs: Vec<String> = servers.iter().map(Server::addr).collect();
    let proxy = Proxy::start("split", &addrs, "[times]\nretry_ms = 10000\n");
    let is_master = |i: usize| servers[i].client().text(&["INFO", "replication"]).contains("role:master");
    counters_are_exact(&proxy, |turn| {
        if turn % 20 > 0 {
            return 0;
        }
        // The two change places when the replica has everything.
        let (master, replica) = if is_master(0) { (0, 1) } else { (1, 0) };
        let asked = servers[master].client().ask(&["FAILOVER", "TO", &servers[replica].host, "6379"]) == b"+OK\r\n";
        until(20.0, "the change", || !asked || is_master(replica));
        until(20.0, "replication", || !asked || servers[master].is_replicating());
        usize::from(asked)
    });
}

#[test]
fn a_pipelined_client_sees_its_own_writes_while_slots_move() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let stop = Arc::new(AtomicBool::new(false));
    let running: Vec<_> = (0..4)
        .map(|n| {
            let (addr, stop) = (proxy.addr.clone(), stop.clone());
            thread::spawn(move || {
                let mut c = Client::new(&addr);
                let mut next = 0i64;
                while !stop.load(Ordering::Relaxed) {
                    for i in 0..50 {
                        c.send(&["SET", &format!("{{c{}}}p{n}", i % COUNTERS), &(next + i as i64).to_string()]);
                        c.send(&["GET", &format!("{{c{}}}p{n}", i % COUNTERS)]);
                    }
                    for i in 0..50 {
                        assert_eq!(c.receive(), b"+OK\r\n");
                        let want = (next + i).to_string();
                        let got = c.receive();
                        assert_eq!(got, format!("${}\r\n{want}\r\n", want.len()).as_bytes());
                    }
                    next += 50;
                }
                next
            })
        })
        .collect();
    for turn in 0..40 {
        move_slot(&cluster, slot(format!("c{}", turn % COUNTERS).as_bytes()), turn % 3);
    }
    stop.store(true, Ordering::Relaxed);
    let count: i64 = running.into_iter().map(|t| t.join().unwrap()).sum();
    assert!(count > 500, "{count}");
}

#[test]
fn a_master_that_dies_is_replaced_and_the_proxy_follows() {
    let mut cluster = Cluster::start(3, true);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let mut c = proxy.client();
    for i in 0..100 {
        c.ok(&["SET", &format!("k{i}"), "1"]);
    }
    let mut subscriber = proxy.client();
    subscriber.send(&["SUBSCRIBE", "news"]);
    subscriber.receive();
    cluster.nodes[0].stop();
    let begun = Instant::now();
    let mut errors = 0;
    // Every slot can be written again, and every reply up to then is a reply.
    let mut left: Vec<usize> = (0..100).collect();
    while !left.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} keys cannot be written, {errors} errors", left.len());
        left.retain(|i| {
            let reply = c.ask(&["SET", &format!("k{i}"), "2"]);
            assert!(reply == b"+OK\r\n" || reply[0] == b'-', "{}", reply.escape_ascii());
            errors += usize::from(reply[0] == b'-');
            reply[0] == b'-'
        });
    }
    println!("whole again after {:?}, {errors} errors", begun.elapsed());
    for i in 0..100 {
        assert_eq!(c.text(&["GET", &format!("k{i}")]), "2");
    }
}
