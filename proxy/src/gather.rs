//! Unions, intersections and differences of keys that lie in several slots: their members are read, the result is
//! made here, and stored (if it is to be) in one transaction of its own slot. What is read is not one moment of all
//! the sources, and nothing keeps them as they are until the result is stored.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use bytes::Bytes;

use crate::client::Client;
use crate::fanout::{count, members, together};
use crate::resp::{self, Value, Write, number};
use crate::slow::Request;
use crate::transaction;

/// Members in one request; no more, so that no server is held up for long.
const PIECE: usize = 4096;

pub async fn command(c: &Rc<Client>, request: &Request) -> Vec<u8> {
    let name = request.cmd.name;
    let result = if name.starts_with('z') { sorted(c, request).await } else { sets(c, request).await };
    result.unwrap_or_else(|error| error)
}

fn texts(reply: &Bytes) -> Result<Vec<&[u8]>, Vec<u8>> {
    let odd = || resp::error("ERR a server gave an answer that cannot be merged");
    match Value::parse(reply) {
        Some(Value::List(list)) => list.iter().map(|v| v.text().ok_or_else(odd)).collect(),
        _ => Err(odd()),
    }
}

async fn sets(c: &Rc<Client>, request: &Request) -> Result<Vec<u8>, Vec<u8>> {
    let name = request.cmd.name;
    let words = request.words();
    let store = name.ends_with("store");
    let keys = &words[if store { 2 } else { 1 }..];
    let reads = keys.iter().map(|key| {
        let key: &[u8] = key;
        async move { members(c, key, &[b"SMEMBERS", key]).await }
    });
    let replies = together(reads.collect()).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut all = replies.iter().map(texts);
    let mut result: Vec<&[u8]> = all.next().transpose()?.unwrap_or_default();
    let mut seen: HashSet<&[u8]> = result.iter().copied().collect();
    for other in all {
        let other = other?;
        if name.starts_with("sunion") {
            result.extend(other.into_iter().filter(|m| seen.insert(m)));
        } else {
            let inter = name.starts_with("sinter");
            let other: HashSet<&[u8]> = other.into_iter().collect();
            result.retain(|m| other.contains(m) == inter);
        }
    }
    if !store {
        let mut out = Vec::new();
        out.head(if c.proto.get() == 3 { b'~' } else { b'*' }, result.len() as i64);
        result.into_iter().for_each(|m| out.bulk(m));
        return Ok(out);
    }
    let target = words[1];
    let adds = result.chunks(PIECE).map(|chunk| {
        let mut line: Vec<&[u8]> = vec![b"SADD", target];
        line.extend_from_slice(chunk);
        c.w.request(&line)
    });
    put(c, request, target, adds.collect()).await?;
    Ok(count(result.len()))
}

async fn sorted(c: &Rc<Client>, request: &Request) -> Result<Vec<u8>, Vec<u8>> {
    let syntax = || resp::error("ERR syntax error");
    let words = request.words();
    let n = number(words[2]).and_then(|n| usize::try_from(n).ok());
    let n = n.ok_or_else(|| resp::error("ERR value is not an integer or out of range"))?;
    let keys = words.get(3..3 + n).ok_or_else(syntax)?;
    let (mut weights, mut aggregate) = (vec![1.0; n], "sum");
    let mut at = 3 + n;
    while at < words.len() {
        if request.is(at, "weights") && at + n < words.len() {
            for (weight, word) in weights.iter_mut().zip(&words[at + 1..]) {
                *weight = score(word).ok_or_else(|| resp::error("ERR weight value is not a float"))?;
            }
            at += n + 1;
        } else if request.is(at, "aggregate") && at + 1 < words.len() {
            aggregate = ["sum", "min", "max"].into_iter().find(|a| request.is(at + 1, a)).ok_or_else(syntax)?;
            at += 2;
        } else {
            return Err(syntax());
        }
    }
    let reads = keys.iter().map(|key| {
        let key: &[u8] = key;
        async move {
            match members(c, key, &[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"]).await {
                // A plain set counts as one whose members all score 1.
                Err(error) if error.starts_with(b"-WRONGTYPE") => {
                    members(c, key, &[b"SMEMBERS", key]).await.map(|r| (r, false))
                }
                other => other.map(|r| (r, true)),
            }
        }
    });
    let replies = together(reads.collect()).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let mut all: HashMap<&[u8], (f64, usize)> = HashMap::new();
    for ((reply, scored), weight) in replies.iter().zip(&weights) {
        let list = texts(reply)?;
        let step = if *scored { 2 } else { 1 };
        for entry in list.chunks(step) {
            let own = if *scored { entry.get(1).and_then(|s| score(s)).unwrap_or(0.0) } else { 1.0 };
            let own = zero_nan(own * weight);
            all.entry(entry[0])
                .and_modify(|(sum, times)| {
                    *times += 1;
                    *sum = match aggregate {
                        "min" => sum.min(own),
                        "max" => sum.max(own),
                        _ => zero_nan(*sum + own),
                    };
                })
                .or_insert((own, 1));
        }
    }
    if request.cmd.name == "zinterstore" {
        all.retain(|_, (_, times)| *times == n);
    }
    let target = words[1];
    let result: Vec<(Vec<u8>, &[u8])> = all.into_iter().map(|(m, (s, _))| (s.to_string().into_bytes(), m)).collect();
    let adds = result.chunks(PIECE).map(|chunk| {
        let mut line: Vec<&[u8]> = vec![b"ZADD", target];
        for (score, member) in chunk {
            line.push(score);
            line.push(member);
        }
        c.w.request(&line)
    });
    put(c, request, target, adds.collect()).await?;
    Ok(count(result.len()))
}

fn zero_nan(n: f64) -> f64 {
    if n.is_nan() { 0.0 } else { n }
}

fn score(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|n: &f64| !n.is_nan())
}

/// Replaces `target` by what these commands make of nothing, at once.
async fn put(c: &Rc<Client>, request: &Request, target: &[u8], mut adds: Vec<Bytes>) -> Result<(), Vec<u8>> {
    adds.insert(0, c.w.request(&[b"DEL", target]));
    let _ = request;
    transaction::at_once(c, target, &adds).await
}
