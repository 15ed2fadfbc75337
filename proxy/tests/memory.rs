//! What one client, or many, can make the proxy keep: little, whatever they do.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cacheyard_proxy::resp::request;
use common::{Client, Cluster, Proxy, Server, until};

/// The most that the process has ever had, in MB.
fn peak_mb(proxy: &Proxy) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.process.0.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_million_commands_of_one_who_does_not_read_wait_outside() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let mut other = proxy.client();
    other.ok(&["SET", "k1", &"x".repeat(100)]);
    let before = proxy.rss_mb();
    let mut eager = proxy.client();
    let mut write = eager.stream.try_clone().unwrap();
    let one = request(&["GET", "k1"]);
    let writer = std::thread::spawn(move || {
        let some = one.repeat(1000);
        (0..1000).for_each(|_| write.write_all(&some).unwrap());
    });
    // Others are served meanwhile.
    let end = Instant::now() + Duration::from_secs(2);
    let mut served = 0;
    while Instant::now() < end {
        assert_eq!(other.text(&["GET", "k1"]).len(), 100);
        served += 1;
    }
    assert!(!writer.is_finished(), "a million commands were taken");
    assert!(served > 5, "{served}");
    let grown = peak_mb(&proxy).saturating_sub(before);
    assert!(grown < 32, "grew by {grown} MB");
    // Nothing is lost: every reply is there for who reads.
    let (mut left, mut buf) = (1_000_000 * 108, vec![0; 1 << 20]);
    while left > 0 {
        left -= eager.stream.read(&mut buf).unwrap();
    }
    writer.join().unwrap();
    assert_eq!(eager.text(&["ECHO", "end"]), "end");
    let grown = peak_mb(&proxy).saturating_sub(before);
    assert!(grown < 32, "grew by {grown} MB");
}

#[test]
fn many_slow_readers_together_cost_what_the_limits_say() {
    let server = Server::start(&[]);
    // None is given up for being slow here.
    let more = "[limits]\noutput_pause = 100000\nconnections = 8\n[times]\nstall_ms = 600000\n";
    let proxy = Proxy::start("split", &[server.addr()], more);
    let mut other = proxy.client();
    other.ok(&["SET", "v", &"x".repeat(10_000)]);
    let before = proxy.rss_mb();
    let get = request(&["GET", "v"]).repeat(2000);
    let slow: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stream = TcpStream::connect(&proxy.addr).unwrap();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(&get);
            stream
        })
        .collect();
    // 800 MB were asked for.
    for _ in 0..300 {
        other.ok(&["SET", "o", "1"]);
        std::thread::sleep(Duration::from_millis(5));
    }
    // At worst 1024 commands of each are on their way when its output is found to stand still.
    let grown = peak_mb(&proxy).saturating_sub(before);
    println!("{grown} MB for 40 slow readers");
    assert!(grown < 40 * 11, "grew by {grown} MB");
    drop(slow);
    until(10.0, "memory to be given back", || proxy.rss_mb() < before + 60);
}

#[test]
fn replies_that_must_wait_for_an_earlier_one_are_not_gathered_without_end() {
    // A shard that is busy is not to be taken for dead.
    let cluster = Cluster::start_with(3, false, &["--cluster-node-timeout", "30000"]);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "[limits]\noutput_limit = 5000000\n");
    let mut other = proxy.client();
    other.ok(&["SET", "foo", &"x".repeat(200_000)]);
    let before = proxy.rss_mb();
    // One shard is busy for a while; another one answers at once what stands behind it.
    let sleep = "local t = redis.call('time')[1] + 3; while tonumber(redis.call('time')[1]) < t do end";
    let mut eager = proxy.client();
    eager.send(&["EVAL", sleep, "1", "bar"]);
    eager.stream.write_all(&request(&["GET", "foo"]).repeat(300)).unwrap();
    until(10.0, "the one who asks for too much to be cut", || proxy.number("clients_cut") == 1);
    assert!(eager.try_receive().is_err());
    let grown = peak_mb(&proxy).saturating_sub(before);
    assert!(grown < 25, "grew by {grown} MB");
    assert_eq!(other.text(&["GET", "foo"]).len(), 200_000);
}

#[test]
fn a_subscriber_that_does_not_read_is_cut() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\noutput_limit = 8000000\n");
    let (mut deaf, mut other) = (proxy.client(), proxy.client());
    deaf.send(&["SUBSCRIBE", "news"]);
    deaf.receive();
    let before = proxy.rss_mb();
    let message = "x".repeat(100_000);
    for _ in 0..500 {
        other.int(&["PUBLISH", "news", &message]);
    }
    until(10.0, "the subscriber to be cut", || proxy.number("clients_cut") == 1);
    let grown = peak_mb(&proxy).saturating_sub(before);
    assert!(grown < 40, "grew by {grown} MB");
}

/// A value in and out, and the memory that it takes.
fn value(megabytes: usize) {
    let cluster = Cluster::start(1, false);
    // Less is kept for a client than a single reply may have.
    let proxy =
        Proxy::start("cluster", &cluster.addrs(), "[limits]\noutput_limit = 20000000\n[times]\nreply_ms = 120000\n");
    let mut c = proxy.client();
    c.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let before = proxy.rss_mb();
    let size = megabytes << 20;
    let value = vec![b'v'; size];
    assert_eq!(c.ask(&[b"SET", &b"k"[..], &value]), b"+OK\r\n");
    drop(value);
    let set = peak_mb(&proxy) - before;
    // It is kept until the server has it; while it comes in, its buffer may grow by copying.
    assert!(set < 2 * megabytes as u64 + 40, "{set} MB for {megabytes}");
    until(10.0, "memory to be given back", || proxy.rss_mb() < before + 20);
    let got = c.ask(&["GET", "k"]);
    assert!(got.len() == size + 5 + size.to_string().len() && got.ends_with(b"vvvv\r\n"));
    // It passes through.
    until(10.0, "memory to be given back", || proxy.rss_mb() < before + 20);
    // In a transaction, with a reply that cannot pass through, for it is looked at.
    c.ok(&["MULTI"]);
    c.ask(&["GET", "k"]);
    let got = c.ask(&["EXEC"]);
    assert!(got.ends_with(b"vvvv\r\n"), "{} bytes", got.len());
    println!("{megabytes} MB: at most {} MB", peak_mb(&proxy) - before);
}

#[test]
fn a_value_of_96_mb() {
    value(96);
}

#[test]
#[ignore = "long: needs 3 GB of memory"]
fn a_value_of_512_mb() {
    value(511);
}

#[test]
fn a_value_that_servers_refuse_harms_nobody_else() {
    let server = Server::start(&["--proto-max-bulk-len", "2mb"]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    until(10.0, "the proxy to know the limit", || proxy.json("state")["ready"] == true);
    let mut other = proxy.client();
    other.ok(&["SET", "a", "1"]);
    let mut waiting = proxy.client();
    for bad in [
        request(&[&b"SET"[..], b"k", &[b'v'; 3 << 20]]),
        b"*01\r\n$4\r\nPING\r\n".to_vec(),
        b"*1\r\n$04\r\nPING\r\n".to_vec(),
        b"*-0\r\n*1\r\n$4\r\nPING\r\n".to_vec(),
    ] {
        // On the same connection, something that would be lost with it.
        waiting.send(&["EVAL", "for i = 1, 1000000 do end; return 'whole'", "0"]);
        let mut c = proxy.client();
        let _ = c.stream.write_all(&bad);
        let said = c.try_receive().unwrap_or_default();
        assert!(said.is_empty() || said.starts_with(b"-ERR Protocol error: invalid"), "{}", said.escape_ascii());
        assert_eq!(waiting.receive(), b"$5\r\nwhole\r\n");
        other.ok(&["SET", "a", "1"]);
    }
    assert!(!server.client().text(&["INFO", "errorstats"]).contains("errorstat_ERR:"), "the server saw it");
}

/// Clients that have nothing to say, and then all have.
fn clients(count: usize) {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\nmaxclients = 20000\n");
    let before = proxy.rss_mb();
    let mut all: Vec<Client> = (0..count).map(|_| proxy.client()).collect();
    for turn in 0..3 {
        for c in &mut all {
            c.send(&["INCR", "n"]);
        }
        for (i, c) in all.iter_mut().enumerate() {
            let n = c.receive();
            assert!(n.starts_with(b":"), "{turn} {i}");
        }
    }
    assert_eq!(all[0].text(&["GET", "n"]), (3 * count).to_string());
    let grown = proxy.rss_mb() - before;
    println!("{grown} MB for {count} clients");
    assert!(grown * 1024 < 10 * count as u64 + 2048, "{grown} MB for {count} clients");
    drop(all);
    until(20.0, "the clients to be gone", || proxy.number("clients") == 0);
}

#[test]
fn five_hundred_clients() {
    clients(500);
}

#[test]
#[ignore = "long: 10,000 connections"]
fn ten_thousand_clients() {
    clients(10_000);
}

#[test]
fn one_whose_peer_has_vanished_is_found_out() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[times]\nidle_s = 1\n");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    // The kernel asks the peer now and then: the timer of its connection is the one for that (2).
    let octets: Vec<u8> = proxy.addr.split([':', '.']).take(4).map(|n| n.parse().unwrap()).collect();
    let own = format!("{:08X}:18EB", u32::from_le_bytes(octets.try_into().unwrap()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let found: Vec<&str> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words[1] == own && words[3] == "01")
        .map(|words| words[5])
        .collect();
    assert!(!found.is_empty() && found.iter().all(|timer| timer.starts_with("02:")), "{found:?} of {own}");
    // One that says nothing is let go, if that is wanted.
    until(10.0, "it to be cut", || proxy.number("clients") == 0);
    assert!(c.try_receive().is_err());
}
