//! What clients see when a process of the proxy, or a master behind it, dies.

mod common;

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::{Client, Cluster, Lateness, Proxy, Relay, Server, address, until};

/// What one client has seen: when each of its commands was answered, and what the errors were.
#[derive(Default)]
struct Seen {
    answered: Vec<Instant>,
    errors: Vec<String>,
    reconnected: Option<Duration>,
}

impl Seen {
    /// The first answer to anything that was asked after this moment. Errors are no answers.
    fn after(&self, moment: Instant) -> Duration {
        self.answered.iter().find(|at| **at > moment).map_or(Duration::MAX, |at| *at - moment)
    }
}

struct Load {
    stop: Arc<AtomicBool>,
    running: Vec<thread::JoinHandle<Seen>>,
}

impl Load {
    /// Clients that do this one after the other, and connect again when they are cut off.
    fn start(addr: &str, count: usize, words: impl Fn(usize, usize) -> Vec<String> + Send + Sync + 'static) -> Load {
        let (stop, words) = (Arc::new(AtomicBool::new(false)), Arc::new(words));
        let running = (0..count).map(|n| {
            let (stop, words, addr) = (stop.clone(), words.clone(), addr.to_string());
            thread::spawn(move || {
                let (mut c, mut seen) = (Client::new(&addr), Seen::default());
                for turn in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    match c.try_ask(&words(n, turn)) {
                        Ok(reply) if reply[0] == b'-' => seen.errors.push(reply.escape_ascii().to_string()),
                        Ok(_) => seen.answered.push(Instant::now()),
                        Err(e) => {
                            let cut = Instant::now();
                            seen.errors.push(e.to_string());
                            until(10.0, "a connection", || {
                                c = Client::new(&addr);
                                c.try_ask(&["PING"]).is_ok()
                            });
                            seen.reconnected = Some(cut.elapsed());
                        }
                    }
                    sleep(Duration::from_millis(1));
                }
                seen
            })
        });
        Load { stop: stop.clone(), running: running.collect() }
    }

    fn end(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.into_iter().map(|t| t.join().unwrap()).collect()
    }
}

#[test]
fn a_process_that_is_killed_is_noticed_by_its_own_clients_only() {
    let server = Server::start(&[]);
    let addr = format!("{}:6379", address());
    let mut proxies: Vec<Proxy> =
        (0..3).map(|_| Proxy::start_at(addr.clone(), "split", &[server.addr()], "")).collect();
    let lateness = Lateness::watch();
    let load = Load::start(&addr, 48, |n, turn| match turn {
        0 => ["INCR".into(), format!("n{n}")].into(),
        _ => ["SET".into(), format!("k{n}"), turn.to_string()].into(),
    });
    // Clients spread: every process has some.
    until(10.0, "clients", || proxies.iter().map(|p| p.number("clients")).sum::<u64>() >= 48);
    let shares: Vec<u64> = proxies.iter().map(|p| p.number("clients")).collect();
    assert!(shares.iter().all(|n| *n > 3), "{shares:?}");
    sleep(Duration::from_millis(300));
    let killed = proxies.remove(1);
    let id = killed.process.0.id().to_string();
    assert!(Command::new("kill").args(["-9", &id]).status().unwrap().success());
    sleep(Duration::from_millis(700));
    let seen = load.end();
    let cut: Vec<&Seen> = seen.iter().filter(|s| s.reconnected.is_some()).collect();
    assert_eq!(cut.len() as u64, shares[1], "of {shares:?}");
    for s in &cut {
        assert_eq!(s.errors.len(), 1, "{:?}", s.errors);
        assert!(s.reconnected.unwrap() < Duration::from_millis(500) + lateness.allowance(), "{:?}", s.reconnected);
    }
    assert_eq!(seen.iter().map(|s| s.errors.len()).sum::<usize>(), cut.len());
    // All are served, by those that are left.
    assert!(seen.iter().all(|s| s.answered.len() > 20));
    drop(killed);
}

fn writes(addr: &str) -> Load {
    Load::start(addr, 12, |n, _| ["INCR".into(), format!("n{n}")].into())
}

/// The worst wait for a write after `moment`. A write that was under way when the master died may be unknown.
fn write_gap(seen: &[Seen], moment: Instant) -> Duration {
    for s in seen {
        assert!(s.errors.len() <= 1, "{:?}", s.errors);
        assert!(s.errors.iter().all(|e| e.contains("the command may have been executed")), "{:?}", s.errors);
    }
    seen.iter().map(|s| s.after(moment)).max().unwrap()
}

#[test]
fn when_the_master_of_split_servers_dies_writes_go_on_at_the_promoted_replica() {
    let mut master = Server::start(&[]);
    let replicaof = format!("{} 6379", master.host);
    let replicas: Vec<Server> = (0..2).map(|_| Server::start(&["--replicaof", &replicaof])).collect();
    until(20.0, "replication", || replicas.iter().all(Server::is_replicating));
    let servers = [master.addr(), replicas[0].addr(), replicas[1].addr()];
    let proxy = Proxy::start("split", &servers, "");
    until(5.0, "both replicas", || proxy.state().matches("\"role\":\"replica\"").count() == 2);
    let lateness = Lateness::watch();
    let writing = writes(&proxy.addr);
    let reading = Load::start(&proxy.addr, 6, |_, _| ["GET".into(), "n1".into()].into());
    sleep(Duration::from_millis(300));
    master.stop();
    let died = Instant::now();
    sleep(Duration::from_millis(300));
    replicas[0].client().ok(&["REPLICAOF", "NO", "ONE"]);
    let promoted = Instant::now();
    replicas[1].client().ok(&["REPLICAOF", &replicas[0].host, "6379"]);
    // The old one comes back and takes itself for the master, as it was told when it was started.
    sleep(Duration::from_millis(500));
    master.again();
    sleep(Duration::from_millis(2500));
    let (wrote, read) = (writing.end(), reading.end());
    let gap = write_gap(&wrote, promoted);
    let read_gap = read.iter().map(|s| s.after(died)).max().unwrap();
    println!(
        "writes again {gap:?} after the promotion, {:?} after the death; reads {read_gap:?}",
        gap + (promoted - died)
    );
    assert!(gap < Duration::from_secs(1) + lateness.allowance(), "{gap:?}");
    assert!(read.iter().all(|s| s.errors.is_empty()));
    assert!(read_gap < Duration::from_millis(500) + lateness.allowance(), "{read_gap:?}");
    // Nothing was sent to the old one since it is back.
    assert_eq!(["incr", "get", "set"].map(|name| master.calls(name)), [0, 0, 0]);
    for (n, s) in wrote.iter().enumerate() {
        let count: usize = replicas[0].client().text(&["GET", &format!("n{n}")]).parse().unwrap();
        assert!(count <= s.answered.len() + s.errors.len());
    }
}

#[test]
fn a_master_that_is_silent_is_left_when_another_one_is_promoted() {
    let master = Server::start(&[]);
    let replica = Server::start(&["--replicaof", &format!("{} 6379", master.host)]);
    until(20.0, "replication", || replica.is_replicating());
    let proxy = Proxy::start("split", &[master.addr(), replica.addr()], "[times]\nrefresh_ms = 300\n");
    let lateness = Lateness::watch();
    let mut waiting = proxy.client();
    waiting.send(&["BLPOP", "nothing", "0"]);
    let mut subscriber = proxy.client();
    subscriber.send(&["SUBSCRIBE", "news"]);
    subscriber.receive();
    let mut watching = proxy.client();
    watching.ok(&["WATCH", "w"]);
    let writing = writes(&proxy.addr);
    sleep(Duration::from_millis(300));
    master.signal("-STOP");
    sleep(Duration::from_millis(300));
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
    let promoted = Instant::now();
    // Whoever waits for it is told.
    assert!(waiting.receive().starts_with(b"-ERR the connection to the server broke"));
    assert!(subscriber.try_receive().is_err());
    watching.ok(&["MULTI"]);
    watching.ask(&["SET", "w", "1"]);
    assert_eq!(watching.ask(&["EXEC"]), b"*-1\r\n");
    sleep(Duration::from_millis(1500));
    // Awake again it still takes itself for the master.
    master.signal("-CONT");
    let before = master.calls("incr");
    sleep(Duration::from_millis(1000));
    let seen = writing.end();
    let gap = write_gap(&seen, promoted);
    println!("writes again {gap:?} after the promotion");
    assert!(gap < Duration::from_millis(2500) + lateness.allowance(), "{gap:?}");
    // What it had been sent it may still do; nothing new comes.
    assert!(master.calls("incr") <= before + 12, "{} more", master.calls("incr") - before);
    assert_eq!(waiting.int(&["RPUSH", "list", "x"]), 1);
    assert_eq!(waiting.ask(&["BLPOP", "list", "0"]), b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
    assert_eq!(master.calls("rpush"), 0);
}

#[test]
fn a_master_that_hangs_right_after_it_was_found_holds_nobody_up() {
    let master = Server::start(&[]);
    let relay = Relay::start(&master.addr());
    let replica = Server::start(&["--replicaof", &format!("{} 6379", master.host)]);
    until(20.0, "replication", || replica.is_replicating());
    let served = format!("{}:6379", relay.host);
    let proxy = Proxy::start("split", &[served, replica.addr()], "[times]\nrefresh_ms = 300\n");
    until(5.0, "the replica", || proxy.state().contains("\"role\":\"replica\""));
    let lateness = Lateness::watch();
    relay.hold_at(b"info");
    until(10.0, "the question after ROLE", || relay.holds());
    replica.client().ok(&["REPLICAOF", "NO", "ONE"]);
    let promoted = Instant::now();
    let mut client = proxy.client();
    until(20.0, "a write", || client.ask(&["SET", "k", "v"]) == b"+OK\r\n");
    let gap = promoted.elapsed();
    assert!(gap < Duration::from_secs(2) + lateness.allowance(), "{gap:?}");
}

#[test]
fn when_a_master_of_a_cluster_dies_writes_go_on_at_the_replica_that_takes_over() {
    let mut cluster = Cluster::start(3, true);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let lateness = Lateness::watch();
    let writing = writes(&proxy.addr);
    sleep(Duration::from_millis(300));
    cluster.nodes[0].stop();
    sleep(Duration::from_millis(300));
    cluster.nodes[3].client().ok(&["CLUSTER", "FAILOVER", "TAKEOVER"]);
    let promoted = Instant::now();
    sleep(Duration::from_millis(2500));
    let seen = writing.end();
    let gap = write_gap(&seen, promoted);
    println!("writes again {gap:?} after the takeover");
    assert!(gap < Duration::from_secs(1) + lateness.allowance(), "{gap:?}");
}

/// So it is for a moment while a server is dying: the kernel takes connections that nobody will read.
#[test]
fn what_was_sent_to_a_server_that_has_never_spoken_is_sent_again() {
    let mut server = Server::start(&[]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let mut client = proxy.client();
    assert_eq!(client.int(&["INCR", "n"]), 1);
    server.stop();
    let deaf = TcpListener::bind(server.addr()).unwrap();
    client.send(&["INCR", "n"]);
    sleep(Duration::from_millis(200));
    drop(deaf);
    server.again();
    assert_eq!(client.receive(), b":1\r\n");
}

#[test]
fn who_comes_while_no_server_can_be_asked_waits_for_one() {
    let mut server = Server::start(&["--requirepass", "secret"]);
    let proxy = Proxy::start("split", &[server.addr()], "password = \"secret\"");
    server.stop();
    let mut clients = [(); 3].map(|()| proxy.client());
    clients[0].send(&["AUTH", "secret"]);
    clients[1].send(&["HELLO", "3", "AUTH", "default", "secret"]);
    clients[2].send(&["AUTH", "wrong"]);
    sleep(Duration::from_millis(300));
    server.again();
    assert_eq!(clients[0].receive(), b"+OK\r\n");
    assert!(clients[1].receive().starts_with(b"%"));
    assert!(clients[2].receive().starts_with(b"-WRONGPASS"));
}

/// What needs a connection of its own to a server, and what the last of it is answered.
const APART: [(&[&[&str]], &str); 7] = [
    (&[&["SELECT", "1"]], "+OK\r\n"),
    (&[&["HELLO", "3"], &["GET", "k"]], "$1\r\n1\r\n"),
    (&[&["WATCH", "k"]], "+OK\r\n"),
    (&[&["MULTI"], &["GET", "k"], &["EXEC"]], "*1\r\n$1\r\n1\r\n"),
    (&[&["BLPOP", "list", "0"]], "*2\r\n$4\r\nlist\r\n$1\r\nx\r\n"),
    (&[&["SUBSCRIBE", "news"]], "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"),
    (&[&["MONITOR"]], "+OK\r\n"),
];

/// Each of these clients asks one of it.
fn ask_apart(clients: &mut [Client]) {
    for (client, (all, _)) in clients.iter_mut().zip(&APART) {
        all.iter().for_each(|words| client.send(words));
    }
}

fn answered(clients: &mut [Client]) {
    for (client, (all, want)) in clients.iter_mut().zip(&APART) {
        let replies: Vec<Vec<u8>> = all.iter().map(|_| client.receive()).collect();
        assert_eq!(replies.last().unwrap().escape_ascii().to_string(), want.escape_default().to_string(), "{all:?}");
    }
}

#[test]
fn who_comes_while_a_server_is_busy_waits_for_it() {
    for password in [None, Some("secret")] {
        let args: Vec<&str> = password.iter().flat_map(|password| ["--requirepass", password]).collect();
        let server = Server::start(&args);
        let own = password.map_or(String::new(), |password| format!("password = \"{password}\"\n"));
        let times = "[times]\nconnect_ms = 300\nretry_ms = 300\n";
        let proxy = Proxy::start("split", &[server.addr()], &(own + times));
        let come = |mut client: Client| {
            if let Some(password) = password {
                client.ok(&["AUTH", password]);
            }
            client
        };
        let (mut direct, mut client) = (come(server.client()), come(proxy.client()));
        client.ok(&["SET", "k", "1"]);
        let mut clients: Vec<Client> = APART.iter().map(|_| come(proxy.client())).collect();
        direct.send(&["DEBUG", "SLEEP", "1.5"]);
        sleep(Duration::from_millis(100));
        ask_apart(&mut clients);
        client.send(&["RPUSH", "list", "x"]);
        answered(&mut clients);
        assert_eq!(client.receive(), b":1\r\n");
    }
}

#[test]
fn who_comes_while_a_server_is_started_waits_for_it() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let proxy = Proxy::start("split", &[server.addr()], "");
    let mut client = proxy.client();
    client.ok(&["SET", "k", "1"]);
    assert_eq!(client.int(&["RPUSH", "list", "x"]), 1);
    server.stop();
    let mut clients: Vec<Client> = APART.iter().map(|_| proxy.client()).collect();
    ask_apart(&mut clients);
    sleep(Duration::from_millis(300));
    server.again();
    answered(&mut clients);
}
