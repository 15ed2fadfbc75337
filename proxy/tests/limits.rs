//! What bounds memory and time: pipelines, slow readers, dead peers, large values, many clients.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Client, Cluster, Proxy, Server, until};

#[test]
fn a_pipeline_of_100_000_commands_is_answered_in_order() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let mut c = proxy.client();
    let mut all = Vec::new();
    for i in 0..50_000 {
        let (key, value) = (format!("k{}", i % 5000), i.to_string());
        all.extend(cacheyard_proxy::resp::request(&["SET", &key, &value]));
        all.extend(cacheyard_proxy::resp::request(&["GET", &key]));
    }
    // Everything is written before anything is read.
    c.stream.write_all(&all).unwrap();
    for i in 0..50_000 {
        assert_eq!(c.receive(), b"+OK\r\n");
        let want = i.to_string();
        assert_eq!(c.receive(), format!("${}\r\n{want}\r\n", want.len()).as_bytes());
    }
}

#[test]
fn a_slow_reader_is_not_read_from_and_others_are_served() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\noutput_pause = 1000000\n[times]\nstall_ms = 1000\n");
    let mut other = proxy.client();
    other.ok(&["SET", "v", &"x".repeat(10_000)]);
    let before = proxy.rss_mb();
    let mut slow = TcpStream::connect(&proxy.addr).unwrap();
    slow.set_nonblocking(true).unwrap();
    let get = cacheyard_proxy::resp::request(&["GET", "v"]).repeat(1000);
    let (mut sent, end) = (0, Instant::now() + Duration::from_secs(3));
    while Instant::now() < end && sent < 200 << 20 {
        match slow.write(&get) {
            Ok(n) => sent += n,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
        other.ok(&["SET", "o", "1"]);
    }
    assert!(sent < 100 << 20, "{sent} bytes were taken");
    let grown = proxy.rss_mb().saturating_sub(before);
    assert!(grown < 60, "grew by {grown} MB");
    // It is paused, not broken: what it asked for is there when it reads.
    slow.set_nonblocking(false).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buf = vec![0; 1 << 20];
    let mut read = 0;
    while read < 20 << 20 {
        read += slow.read(&mut buf).unwrap();
    }
}

#[test]
fn one_who_takes_nothing_of_a_large_reply_is_cut_and_others_go_on() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\noutput_pause = 1000000\n[times]\nstall_ms = 1000\n");
    let mut other = proxy.client();
    other.ok(&["SET", "v", &"x".repeat(64 << 20)]);
    let before = proxy.rss_mb();
    let mut slow = proxy.client();
    slow.send(&["GET", "v"]);
    let begun = Instant::now();
    std::thread::sleep(Duration::from_millis(200));
    other.ok(&["SET", "o", "1"]);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(proxy.rss_mb().saturating_sub(before) < 60);
    until(5.0, "the slow one to be cut", || proxy.number("clients_cut") == 1);
    // Whole for whoever reads it.
    assert_eq!(other.ask(&["GET", "v"]).len(), (64 << 20) + 13);
}

#[test]
fn a_server_that_hangs_is_given_up_and_one_that_comes_back_is_used() {
    let mut server = Server::start(&[]);
    let proxy =
        Proxy::start("split", &[server.addr()], "[times]\nreply_ms = 1000\nretry_ms = 1500\nconnect_ms = 500\n");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    server.signal("-STOP");
    let begun = Instant::now();
    let reply = c.show(&["SET", "a", "2"]);
    assert!(reply.contains("may have been executed"), "{reply}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let reply = c.show(&["GET", "a"]);
    assert!(reply.starts_with("-ERR"), "{reply}");
    server.signal("-CONT");
    until(5.0, "the server to be used again", || c.ask(&["GET", "a"]).starts_with(b"$1"));
    server.stop();
    assert!(c.show(&["SET", "a", "2"]).starts_with("-ERR"));
    server.again();
    until(5.0, "the server to be used again", || c.ask(&["SET", "a", "3"]) == b"+OK\r\n");
}

#[test]
fn limits_of_clients_hold() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "[limits]\nmaxclients = 3\n[times]\nidle_s = 1\n");
    until(5.0, "old connections to be gone", || proxy.number("clients") == 0);
    let mut some: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
    for c in &mut some {
        c.ok(&["SET", "a", "1"]);
    }
    assert!(proxy.client().receive().starts_with(b"-ERR max number of clients"));
    // One that waits for something is not idle.
    some[0].send(&["BLPOP", "nothing", "4"]);
    until(5.0, "idle clients to be cut", || proxy.number("clients") == 1);
    assert_eq!(some[0].receive(), b"*-1\r\n");
}

#[test]
fn what_is_under_way_is_finished_on_sigterm() {
    let server = Server::start(&[]);
    let mut proxy = Proxy::start("split", &[server.addr()], "");
    let mut c = proxy.client();
    c.ok(&["SET", "a", "1"]);
    c.send(&["DEBUG", "SLEEP", "0"]);
    c.receive();
    c.send(&["BLPOP", "list", "1"]);
    c.send(&["GET", "a"]);
    std::thread::sleep(Duration::from_millis(100));
    let id = proxy.process.0.id().to_string();
    assert!(std::process::Command::new("kill").arg(&id).status().unwrap().success());
    assert_eq!(c.receive(), b"*-1\r\n");
    until(5.0, "the proxy to end", || proxy.process.0.try_wait().unwrap().is_some());
    assert!(proxy.process.0.wait().unwrap().success());
    assert!(!proxy.place.path().join("control").exists());
}

#[test]
fn an_argument_that_is_too_long_is_refused_before_a_server_sees_it() {
    let server = Server::start(&["--proto-max-bulk-len", "2mb"]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let long = "x".repeat(1_500_000);
    proxy.client().ok(&["SET", "v", &long]);
    let change = |text: String| format!("{text}\n[limits]\nmax_argument = 1048576\n");
    assert_eq!(proxy.change(change), "ok\n");
    for _ in 0..20 {
        let refused = proxy.client().show(&["SET", "v", &long]);
        assert!(refused.contains("invalid bulk length"), "{refused}");
    }
    proxy.client().ok(&["SET", "v", "short"]);
}

#[test]
fn who_is_refused_can_send_on_to_read_why_but_not_for_long() {
    let server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let mut client = proxy.client();
    client.stream.write_all(b"*1\r\n$-5\r\n").unwrap();
    let begun = Instant::now();
    while client.stream.write_all(&[b'x'; 1000]).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let mut other = proxy.client();
    other.stream.write_all(b"*1\r\n$-5\r\n").unwrap();
    assert_eq!(other.receive(), b"-ERR Protocol error: invalid bulk length\r\n");
    let mut rest = Vec::new();
    assert_eq!(other.stream.read_to_end(&mut rest).unwrap(), 0);
}
