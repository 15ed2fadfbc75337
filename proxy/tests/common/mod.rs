//! Real servers and the real proxy for tests, at loopback addresses of their own. Whatever a test started is gone
//! when it ends, also when it fails.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use cacheyard_proxy::resp::{self, Replies, Value};

static NEXT: AtomicU32 = AtomicU32::new(1);

/// An address of 127.0.0.0/8 that no other test uses.
pub fn address() -> String {
    let n = NEXT.fetch_add(1, Ordering::SeqCst);
    let pid = std::process::id();
    format!("127.{}.{}.{}", 100 + pid / 250 % 100, 1 + pid % 250, n)
}

pub fn until(seconds: f64, what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    while !done() {
        assert!(Instant::now() < end, "waited {seconds} s for {what}");
        sleep(Duration::from_millis(10));
    }
}

pub struct Place(PathBuf);

impl Place {
    pub fn new() -> Place {
        let n = NEXT.fetch_add(1, Ordering::SeqCst);
        let path = std::env::temp_dir().join(format!("cacheyard-proxy-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Server {
    pub host: String,
    process: Option<Process>,
    place: Place,
    args: Vec<String>,
}

impl Server {
    pub fn start(args: &[&str]) -> Server {
        let mut server = Server {
            host: address(),
            process: None,
            place: Place::new(),
            args: args.iter().map(|a| a.to_string()).collect(),
        };
        server.again();
        server
    }

    pub fn again(&mut self) {
        let host = &self.host;
        let dir = self.place.path().display().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", "6379", "--bind", host, "--bind-source-addr", host, "--save", "", "--dir", &dir]);
        command.args(["--logfile", "log", "--protected-mode", "no", "--repl-ping-replica-period", "1"]);
        command.args(["--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"]);
        command.args(&self.args).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(Process(command.spawn().unwrap()));
        let addr = self.addr();
        until(10.0, "a server to answer", || TcpStream::connect(&addr).is_ok());
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    pub fn signal(&self, name: &str) {
        if let Some(process) = &self.process {
            let id = process.0.id().to_string();
            assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
        }
    }

    pub fn addr(&self) -> String {
        format!("{}:6379", self.host)
    }

    pub fn client(&self) -> Client {
        Client::new(&self.addr())
    }

    /// How often it was asked this.
    pub fn calls(&self, command: &str) -> u64 {
        let text = self.client().text(&["INFO", "commandstats"]);
        let line = text.lines().find(|l| l.starts_with(&format!("cmdstat_{command}:")));
        line.map_or(0, |l| l.split(['=', ',']).nth(1).unwrap().parse().unwrap())
    }

    pub fn is_replicating(&self) -> bool {
        self.client().text(&["INFO", "replication"]).contains("link_status:up")
    }
}

/// Passes on what goes between two servers, and what comes from the one that is asked only while it may.
pub struct Relay {
    pub host: String,
    held: Arc<AtomicBool>,
    trap: Arc<OnceLock<&'static [u8]>>,
}

impl Relay {
    pub fn start(to: &str) -> Relay {
        let relay = Relay { host: address(), held: Arc::default(), trap: Arc::default() };
        let listener = TcpListener::bind((relay.host.as_str(), 6379)).unwrap();
        let (to, held, trap) = (to.to_string(), relay.held.clone(), relay.trap.clone());
        thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { return };
                let Ok(far) = TcpStream::connect(&to) else { continue };
                let pass = |mut from: TcpStream, mut to: TcpStream, asks: bool| {
                    let (held, trap) = (held.clone(), trap.clone());
                    thread::spawn(move || {
                        let mut buf = [0; 65536];
                        while let Ok(n) = from.read(&mut buf) {
                            let trapped = |word: &&[u8]| buf[..n].windows(word.len()).any(|part| part == *word);
                            if asks && trap.get().is_some_and(trapped) {
                                held.store(true, Ordering::SeqCst);
                            }
                            while !asks && held.load(Ordering::SeqCst) {
                                sleep(Duration::from_millis(1));
                            }
                            if n == 0 || to.write_all(&buf[..n]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(Shutdown::Both);
                    });
                };
                pass(near.try_clone().unwrap(), far.try_clone().unwrap(), true);
                pass(far, near, false);
            }
        });
        relay
    }

    pub fn hold(&self, on: bool) {
        self.held.store(on, Ordering::SeqCst);
    }

    /// Hold as soon as this word is asked.
    pub fn hold_at(&self, word: &'static [u8]) {
        self.trap.set(word).unwrap();
    }

    pub fn holds(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }
}

pub struct Cluster {
    pub nodes: Vec<Server>,
    pub masters: usize,
}

impl Cluster {
    /// `masters` nodes with slots, and as many replicas if wanted.
    pub fn start(masters: usize, replicas: bool) -> Cluster {
        Cluster::start_with(masters, replicas, &[])
    }

    /// … configured with more.
    pub fn start_with(masters: usize, replicas: bool, more: &[&str]) -> Cluster {
        let count = masters * if replicas { 2 } else { 1 };
        let args =
            ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-allow-replica-migration", "no"];
        let nodes: Vec<Server> = (0..count)
            .map(|_| {
                let mut server = Server { host: address(), process: None, place: Place::new(), args: vec![] };
                server.args = args.iter().chain(more).map(|a| a.to_string()).collect();
                server.args.extend(["--cluster-announce-ip".into(), server.host.clone()]);
                server.again();
                server
            })
            .collect();
        let cluster = Cluster { nodes, masters };
        for (i, node) in cluster.nodes.iter().enumerate() {
            let mut client = node.client();
            if i < masters {
                let (from, to) = (16384 * i / masters, 16384 * (i + 1) / masters - 1);
                client.ok(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]);
            }
            client.ok(&["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
        }
        for node in &cluster.nodes {
            let mut client = node.client();
            for other in &cluster.nodes {
                client.ok(&["CLUSTER", "MEET", &other.host, "6379"]);
            }
        }
        let known = |node: &Server| {
            node.client().text(&["CLUSTER", "NODES"]).lines().filter(|l| l.contains(" connected")).count()
        };
        until(30.0, "the nodes to know each other", || cluster.nodes.iter().all(|n| known(n) == count));
        for i in masters..count {
            let id = cluster.id(i - masters);
            until(10.0, "a replica", || cluster.nodes[i].client().ask(&["CLUSTER", "REPLICATE", &id]) == b"+OK\r\n");
        }
        for i in masters..count {
            until(20.0, "replication", || {
                cluster.nodes[i].client().text(&["INFO", "replication"]).contains("link_status:up")
            });
        }
        until(30.0, "the cluster to be whole", || {
            cluster.nodes.iter().all(|n| n.client().text(&["CLUSTER", "INFO"]).contains("cluster_state:ok"))
        });
        cluster
    }

    pub fn id(&self, i: usize) -> String {
        self.nodes[i].client().text(&["CLUSTER", "MYID"])
    }

    pub fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(Server::addr).collect()
    }
}

pub struct Proxy {
    pub addr: String,
    pub process: Process,
    pub place: Place,
}

impl Proxy {
    pub fn start(mode: &str, servers: &[String], more: &str) -> Proxy {
        Proxy::start_at(format!("{}:6379", address()), mode, servers, more)
    }

    /// One of several at the same address.
    pub fn start_at(addr: String, mode: &str, servers: &[String], more: &str) -> Proxy {
        let place = Place::new();
        let control = place.path().join("control");
        let text = format!(
            "mode = \"{mode}\"\nlisten = [\"{addr}\"]\nservers = {servers:?}\ncontrol = \"{}\"\n{more}\n",
            control.display()
        );
        let config = place.path().join("config.toml");
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cacheyard-proxy"));
        command.arg(&config).stdout(Stdio::null());
        let proxy = Proxy { addr, process: Process(command.spawn().unwrap()), place };
        until(10.0, "the proxy to serve", || {
            TcpStream::connect(&proxy.addr).is_ok() && proxy.state().contains("\"role\":\"master\"")
        });
        proxy
    }

    pub fn control(&self, word: &str) -> String {
        let Ok(mut stream) = UnixStream::connect(self.place.path().join("control")) else { return String::new() };
        stream.write_all(word.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    pub fn state(&self) -> String {
        self.control("state")
    }

    pub fn json(&self, word: &str) -> serde_json::Value {
        serde_json::from_str(&self.control(word)).unwrap()
    }

    /// Writes its configuration anew, from what it is, and has it read.
    pub fn change(&self, edit: impl FnOnce(String) -> String) -> String {
        let path = self.place.path().join("config.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, edit(text)).unwrap();
        self.control("reload")
    }

    /// A number of the state.
    pub fn number(&self, name: &str) -> u64 {
        let state = self.state();
        let from = state.find(&format!("\"{name}\":")).unwrap() + name.len() + 3;
        let digits: String = state[from..].chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    }

    pub fn client(&self) -> Client {
        Client::new(&self.addr)
    }

    pub fn rss_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

/// How late this machine is at times, so that what is measured on it can be judged.
pub struct Lateness {
    worst: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
}

impl Lateness {
    pub fn watch() -> Lateness {
        let lateness = Lateness { worst: Arc::default(), over: Arc::default() };
        let (worst, over) = (lateness.worst.clone(), lateness.over.clone());
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                sleep(Duration::from_millis(5));
                worst.fetch_max(begun.elapsed().as_millis() as u32 - 5, Ordering::Relaxed);
            }
        });
        lateness
    }

    /// Of all processes that take part in something.
    pub fn allowance(&self) -> Duration {
        Duration::from_millis(10 * u64::from(self.worst.load(Ordering::Relaxed)))
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// A client that shows replies as they are.
pub struct Client {
    pub stream: TcpStream,
    buf: Vec<u8>,
}

impl Client {
    pub fn new(addr: &str) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Client { stream, buf: Vec::new() }
    }

    pub fn send<T: AsRef<[u8]>>(&mut self, words: &[T]) {
        self.stream.write_all(&resp::request(words)).unwrap();
    }

    pub fn try_receive(&mut self) -> std::io::Result<Vec<u8>> {
        let mut scan = Replies::default();
        let mut seen = 0;
        loop {
            let (n, end) = scan.feed(&self.buf[seen..]).map_err(|_| std::io::ErrorKind::InvalidData)?;
            seen += n;
            if end {
                let rest = self.buf.split_off(seen);
                return Ok(std::mem::replace(&mut self.buf, rest));
            }
            let mut piece = vec![0; 256 * 1024];
            let n = self.stream.read(&mut piece)?;
            if n == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.buf.extend_from_slice(&piece[..n]);
        }
    }

    pub fn receive(&mut self) -> Vec<u8> {
        self.try_receive().unwrap()
    }

    pub fn ask<T: AsRef<[u8]>>(&mut self, words: &[T]) -> Vec<u8> {
        self.send(words);
        self.receive()
    }

    pub fn try_ask<T: AsRef<[u8]>>(&mut self, words: &[T]) -> std::io::Result<Vec<u8>> {
        self.stream.write_all(&resp::request(words))?;
        self.try_receive()
    }

    /// The reply as something to read.
    pub fn show<T: AsRef<[u8]>>(&mut self, words: &[T]) -> String {
        self.ask(words).escape_ascii().to_string()
    }

    pub fn ok(&mut self, words: &[&str]) {
        let reply = self.ask(words);
        assert_eq!(reply, b"+OK\r\n", "{words:?}: {}", reply.escape_ascii());
    }

    pub fn int(&mut self, words: &[&str]) -> i64 {
        let reply = self.ask(words);
        match Value::parse(&reply) {
            Some(Value::Int(n)) => n,
            _ => panic!("{words:?}: {}", reply.escape_ascii()),
        }
    }

    pub fn text(&mut self, words: &[&str]) -> String {
        let reply = self.ask(words);
        match Value::parse(&reply) {
            Some(Value::Text(text)) => String::from_utf8_lossy(text).into_owned(),
            _ => panic!("{words:?}: {}", reply.escape_ascii()),
        }
    }
}
