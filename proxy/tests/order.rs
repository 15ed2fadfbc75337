//! Replies come in the order of the requests, whatever their size and wherever they come from.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use cacheyard_proxy::resp::{Parsed, Requests, Write as _, request};
use common::{Cluster, Proxy, address};

/// As random as a test needs.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn value(key: u64, size: usize) -> Vec<u8> {
    let mut out = format!("{key}:").into_bytes();
    out.resize(size.max(out.len()), b'a' + (key % 26) as u8);
    out
}

/// A stream of mixed commands, cut at random, and what must come back.
#[test]
fn replies_of_every_size_keep_their_order() {
    let cluster = Cluster::start(3, false);
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    let threads: Vec<_> = (0..4u64)
        .map(|n| {
            let addr = proxy.addr.clone();
            std::thread::spawn(move || {
                let mut dice = Dice(n);
                let mut c = common::Client::new(&addr);
                let mut now = std::collections::HashMap::new();
                for _ in 0..25 {
                    let (mut sent, mut want) = (Vec::new(), Vec::new());
                    for _ in 0..dice.roll(120) + 1 {
                        let key = n * 1000 + dice.roll(40);
                        let name = format!("key{key}");
                        match dice.roll(10) {
                            0..=3 => {
                                let sizes = [3, 40, 500, 15_000, 17_000, 40_000, 70_000, 300_000];
                                let most = if dice.roll(4) == 0 { 8 } else { 3 };
                                let size = sizes[dice.roll(most) as usize];
                                let value = value(key, size);
                                sent.extend(request(&[b"SET", name.as_bytes(), &value]));
                                now.insert(name, value);
                                want.push(b"+OK\r\n".to_vec());
                            }
                            4..=7 => {
                                sent.extend(request(&["GET", &name]));
                                want.push(match now.get(&name) {
                                    Some(value) => {
                                        let mut out = format!("${}\r\n", value.len()).into_bytes();
                                        out.extend(value);
                                        out.extend(b"\r\n");
                                        out
                                    }
                                    None => b"$-1\r\n".to_vec(),
                                });
                            }
                            8 => {
                                let other = format!("key{}", n * 1000 + dice.roll(40));
                                sent.extend(request(&["EXISTS", &name, &other]));
                                let count = [&name, &other].iter().filter(|k| now.contains_key(**k)).count();
                                want.push(format!(":{count}\r\n").into_bytes());
                            }
                            _ => {
                                sent.extend(request(&["NOSUCH"]));
                                want.push(b"-ERR unknown command 'NOSUCH', with args beginning with: \r\n".to_vec());
                            }
                        }
                    }
                    let mut write = c.stream.try_clone().unwrap();
                    let mut cuts = Dice(dice.roll(1 << 30));
                    let writer = std::thread::spawn(move || {
                        let mut at = 0;
                        while at < sent.len() {
                            let end = sent.len().min(at + 1 + cuts.roll(50_000) as usize);
                            write.write_all(&sent[at..end]).unwrap();
                            at = end;
                        }
                    });
                    for (i, want) in want.iter().enumerate() {
                        let got = c.receive();
                        let cut = |r: &[u8]| r[..r.len().min(60)].escape_ascii().to_string();
                        assert!(got == *want, "reply {i}: {} for {}", cut(&got), cut(want));
                    }
                    writer.join().unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}

/// What a node of a cluster says that keeps nothing: a GET is answered with its key, after a while.
fn answer(words: &[Vec<u8>], hosts: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    match &words[0].to_ascii_uppercase()[..] {
        b"CLUSTER" => {
            out.head(b'*', hosts.len() as i64);
            for (i, host) in hosts.iter().enumerate() {
                out.head(b'*', 3);
                out.head(b':', (16384 * i / hosts.len()) as i64);
                out.head(b':', (16384 * (i + 1) / hosts.len() - 1) as i64);
                out.head(b'*', 3);
                out.bulk(host.as_bytes());
                out.head(b':', 6379);
                out.bulk(format!("{i:040}").as_bytes());
            }
        }
        b"GET" => out.bulk(&words[1]),
        b"CONFIG" => out.head(b'*', 0),
        b"INFO" => out.bulk(b"redis_version:7.0.15\r\n"),
        _ => out.extend_from_slice(b"+PONG\r\n"),
    }
    out
}

fn serve(mut stream: TcpStream, hosts: Vec<String>, mut dice: Dice) {
    let (mut buf, mut reader, mut piece) = (Vec::new(), Requests::default(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut piece) {
        buf.extend_from_slice(&piece[..n]);
        while let Ok(Parsed::Command(n)) = reader.next(&buf) {
            let words: Vec<Vec<u8>> =
                reader.args().iter().map(|(a, b)| buf[*a as usize..*b as usize].to_vec()).collect();
            buf.drain(..n);
            let reply = answer(&words, &hosts);
            if dice.roll(8) == 0 {
                std::thread::sleep(Duration::from_micros(dice.roll(3000)));
            }
            // In two pieces, cut anywhere.
            let (first, second) = reply.split_at(dice.roll(reply.len() as u64) as usize);
            let _ = stream.write_all(first);
            if dice.roll(20) == 0 {
                std::thread::sleep(Duration::from_micros(dice.roll(2000)));
            }
            let _ = stream.write_all(second);
        }
    }
}

#[test]
fn replies_keep_their_order_however_long_each_server_takes() {
    let hosts: Vec<String> = (0..3).map(|_| address()).collect();
    for host in &hosts {
        let (listener, hosts) = (TcpListener::bind((host.as_str(), 6379)).unwrap(), hosts.clone());
        std::thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let (hosts, stream) = (hosts.clone(), stream.unwrap());
                stream.set_nodelay(true).unwrap();
                std::thread::spawn(move || serve(stream, hosts, Dice(i as u64)));
            }
        });
    }
    let servers: Vec<String> = hosts.iter().map(|host| format!("{host}:6379")).collect();
    let proxy = Proxy::start("cluster", &servers, "[limits]\nconnections = 2\n");
    let threads: Vec<_> = (0..6u64)
        .map(|n| {
            let addr = proxy.addr.clone();
            std::thread::spawn(move || {
                let (mut c, mut dice) = (common::Client::new(&addr), Dice(100 + n));
                for turn in 0..20 {
                    let keys: Vec<String> =
                        (0..1 + dice.roll(150)).map(|i| format!("{turn}-{i}-{}", dice.roll(1 << 30))).collect();
                    let sent: Vec<u8> = keys.iter().flat_map(|key| request(&["GET", key])).collect();
                    c.stream.write_all(&sent).unwrap();
                    for key in &keys {
                        assert_eq!(c.receive(), format!("${}\r\n{key}\r\n", key.len()).as_bytes());
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
}
