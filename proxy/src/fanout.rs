//! Commands that concern several servers: asked of each, and merged into the one reply that a single server would
//! have given. Questions go out together; none of this is atomic across servers.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;

use crate::client::Client;
use crate::clients;
use crate::cluster::own_question;
use crate::config::Mode;
use crate::databases;
use crate::gather;
use crate::keyspace;
use crate::merge;
use crate::resp::{self, OK, Value, Write, integer};
use crate::slot::slot;
use crate::slow::{Request, ask, node_for, seek};
use crate::table::READONLY;
use crate::upstream::call;
use crate::world::NONE;

/// All of them at once; results in the order of the futures.
pub async fn together<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut open: Vec<_> = futures.into_iter().map(|f| Some(Box::pin(f))).collect();
    let mut done: Vec<Option<T>> = open.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut all = true;
        for (place, result) in open.iter_mut().zip(&mut done) {
            if let Some(future) = place {
                match Pin::new(future).poll(cx) {
                    Poll::Ready(value) => {
                        *result = Some(value);
                        *place = None;
                    }
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The same request to each of these nodes, in the client's own protocol.
pub async fn each(c: &Rc<Client>, nodes: &[u16], request: &Request) -> Vec<Bytes> {
    let repeatable = request.cmd.has(READONLY);
    let asked = nodes.iter().map(|node| {
        let conn = c.conn(*node);
        let raw = request.raw.clone();
        async move { call(&conn, raw, repeatable, true).await }
    });
    together(asked.collect()).await
}

pub fn failure(replies: &[Bytes]) -> Option<Bytes> {
    replies.iter().find(|r| r.starts_with(b"-")).cloned()
}

pub async fn command(c: &Rc<Client>, request: &Request) {
    let w = c.w;
    if w.mode.get() == Mode::Split && request.cmd.name == "info" {
        return master_info(c, request).await;
    }
    let nodes = w.masters();
    if nodes.is_empty() {
        return c.emit(b"-CLUSTERDOWN Hash slot not served\r\n");
    }
    let name = request.cmd.name;
    let proto = c.proto.get();
    if let Some(("cluster", _)) = name.split_once('|') {
        return c.emit(b"-ERR This instance has cluster support disabled\r\n");
    }
    if name == "keys" && w.config().on_replicas.iter().any(|on| on == name) {
        let reply = keys(c, request, &w.replicas(&nodes)).await;
        if !reply.starts_with(b"-") {
            return c.emit_big(reply);
        } // one has gone: masters know too
    }
    let several = w.databases.get() > 0;
    if several {
        if let Some(reply) = keyspace::command(c, request, &nodes).await {
            return c.emit_big(reply);
        }
    }
    let reply: Bytes = match name {
        "mget" | "mset" | "del" | "unlink" | "exists" | "touch" => split(c, request).await.into(),
        "sunion" | "sinter" | "sdiff" | "sunionstore" | "sinterstore" | "sdiffstore" | "zunionstore"
        | "zinterstore" => gather::command(c, request).await.into(),
        "scan" => scan(c, request, &nodes).await.into(),
        "keys" => keys(c, request, &nodes).await,
        "dbsize" | "pubsub|numpat" => merged(&each(c, &nodes, request).await, merge::sum),
        "flushall" | "flushdb" | "function|delete" | "function|flush" | "function|restore" => {
            merged(&each(c, &nodes, request).await, merge::first)
        }
        "function|load" => merged(&each(c, &nodes, request).await, merge::first),
        "function|kill" | "script|kill" => merged(&each(c, &nodes, request).await, merge::success),
        "script|load" | "script|flush" => merged(&each(c, &w.script_nodes(), request).await, merge::first),
        "script|exists" => merged(&each(c, &nodes, request).await, merge::all_set),
        "pubsub|channels" | "pubsub|shardchannels" => {
            merged(&each(c, &nodes, request).await, |replies| merge::unique(replies, proto))
        }
        "pubsub|numsub" | "pubsub|shardnumsub" => merged(&each(c, &nodes, request).await, merge::sum_pairs),
        "slowlog|len" => merged(&each(c, &nodes, request).await, merge::sum),
        "slowlog|reset" => merged(&each(c, &nodes, request).await, merge::first),
        "slowlog|get" => {
            let limit = merge::slowlog_limit(request);
            merged(&each(c, &nodes, request).await, |replies| merge::slowlog(replies, limit))
        }
        "icluster|nodes" => own_question(w, nodes[0], &["CLUSTER", "NODES"]).await,
        "info" => {
            let replies = each(c, &nodes, request).await;
            match failure(&replies) {
                Some(reply) => reply,
                None => {
                    let merged = merge::info(&replies, clients::count(w).await, proto).into();
                    if several { keyspace::info(c, &nodes, merged).await } else { merged }
                }
            }
        }
        "randomkey" => randomkey(c, &nodes, proto).await,
        "config|get" => each(c, &nodes[..1], request).await.swap_remove(0),
        "memory|doctor" | "memory|malloc-stats" | "memory|purge" | "memory|stats" => memory(c, request, &nodes).await,
        _ => resp::error(format!("ERR {name} is not supported by this proxy")).into(),
    };
    c.emit_big(reply);
}

async fn keys(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Bytes {
    if c.w.databases.get() > 0 {
        if let Some(reply) = keyspace::command(c, request, nodes).await {
            return reply;
        }
    }
    merged(&each(c, nodes, request).await, merge::concat)
}

/// split: INFO is the master's, but for the number of clients.
async fn master_info(c: &Rc<Client>, request: &Request) {
    let Some(node) = node_for(c, request).await else { return };
    let reply = call(&c.conn(node), request.raw.clone(), true, false).await;
    c.emit_big(match reply.first() {
        Some(b'-') => reply,
        _ => merge::info(&[reply], clients::count(c.w).await, c.proto.get()).into(),
    });
}

/// Errors first; a reply that does not look as it should is passed on as it is.
fn merged(replies: &[Bytes], merge: impl Fn(&[Bytes]) -> Option<Vec<u8>>) -> Bytes {
    if let Some(merged) = merge(replies) {
        return merged.into();
    }
    failure(replies).unwrap_or_else(|| replies[0].clone())
}

/// One command for each slot, all at once, and their replies in the order of the keys.
async fn split(c: &Rc<Client>, request: &Request) -> Vec<u8> {
    let name = request.cmd.name;
    let words = request.words();
    let step = if name == "mset" { 2 } else { 1 };
    if name == "mset" && words.len() % 2 == 0 {
        return resp::error("ERR wrong number of arguments for 'mset' command");
    }
    let mut parts: Vec<(u16, Vec<usize>)> = Vec::new();
    let mut by_slot: HashMap<u16, usize> = HashMap::new();
    for at in (1..words.len()).step_by(step) {
        let slot = slot(words[at]);
        let part = *by_slot.entry(slot).or_insert_with(|| {
            parts.push((slot, Vec::new()));
            parts.len() - 1
        });
        parts[part].1.push(at);
    }
    let repeatable = request.cmd.has(READONLY) || name == "mset";
    let asked = parts.iter().map(|(slot, keys)| {
        let mut line: Vec<&[u8]> = vec![words[0]];
        for at in keys {
            line.extend_from_slice(&words[*at..*at + step]);
        }
        let request = resp::request(&line);
        let node = c.w.slots[*slot as usize].get();
        let conn = (node != NONE).then(|| c.conn(node));
        async move {
            match conn {
                Some(conn) => call(&conn, request.into(), repeatable, false).await,
                None => Bytes::from_static(b"-CLUSTERDOWN Hash slot not served\r\n"),
            }
        }
    });
    let replies = together(asked.collect()).await;
    if let Some(reply) = failure(&replies) {
        return reply.to_vec();
    }
    match name {
        "mset" => OK.to_vec(),
        "mget" => {
            let mut pieces: Vec<&[u8]> = vec![&[]; words.len()];
            for ((_, keys), reply) in parts.iter().zip(&replies) {
                let Some(found) = merge::elements(reply) else { return reply.to_vec() };
                for (at, piece) in keys.iter().zip(found) {
                    pieces[*at] = piece;
                }
            }
            let mut out = Vec::with_capacity(replies.iter().map(Bytes::len).sum());
            out.head(b'*', words.len() as i64 - 1);
            pieces.into_iter().for_each(|piece| out.extend_from_slice(piece));
            out
        }
        _ => merge::sum(&replies).unwrap_or_else(|| replies[0].to_vec()),
    }
}

/// Bits of a cursor that are the shard's own; the bits above say which shard it is.
const CURSOR: u32 = 52;

/// `SCAN cursor … [ip:port]`: one shard after the other, or the one that is named.
async fn scan(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Vec<u8> {
    let mut words = request.words();
    let last = words.len() - 1;
    let addressed = words.len() % 2 == 1 && words[last].contains(&b':');
    let text = std::str::from_utf8(words[1]).unwrap_or("");
    let Ok(cursor) = text.parse::<u64>() else { return resp::error("ERR invalid cursor") };
    let (shard, node, cursor) = if addressed {
        let addr = words.pop().unwrap_or_default();
        match c.w.known_node(addr) {
            Some(node) => (0, node, cursor),
            None => return resp::error("ERR no such shard"),
        }
    } else {
        let shard = (cursor >> CURSOR) as usize;
        match nodes.get(shard) {
            Some(node) => (shard, *node, cursor & ((1 << CURSOR) - 1)),
            None => return resp::error("ERR invalid cursor"),
        }
    };
    let cursor = cursor.to_string();
    (words[0], words[1]) = (request.cmd.name.as_bytes(), cursor.as_bytes());
    let several = c.w.databases.get() > 0;
    let reply = match several.then(|| databases::scanned(c.db.get(), &words)) {
        Some(words) => ask(c, node, &words).await,
        None => ask(c, node, &words).await,
    };
    if addressed && !several {
        return reply.to_vec();
    }
    let Some(Value::List(pair)) = Value::parse(&reply) else { return reply.to_vec() };
    let (Some(next), Some(pieces)) = (pair.first().and_then(Value::int), merge::elements(&reply)) else {
        return reply.to_vec();
    };
    let next = next as u64;
    let next = match next {
        n if addressed => n,
        0 if shard + 1 == nodes.len() => 0,
        0 => (shard as u64 + 1) << CURSOR,
        n if n >> CURSOR != 0 => return resp::error("ERR the cursor of the shard is too large"),
        n => (shard as u64) << CURSOR | n,
    };
    let mut out = Vec::with_capacity(reply.len() + 24);
    out.head(b'*', 2);
    out.bulk(next.to_string().as_bytes());
    match several.then(|| databases::own(c.db.get(), pieces[1])).flatten() {
        Some(keys) => out.extend_from_slice(&keys),
        None => out.extend_from_slice(pieces[1]),
    }
    out
}

async fn randomkey(c: &Rc<Client>, nodes: &[u16], proto: u8) -> Bytes {
    let start = c.w.turn.get() as usize;
    c.w.turn.set(c.w.turn.get() + 1);
    for i in 0..nodes.len() {
        let reply = ask(c, nodes[(start + i) % nodes.len()], &["RANDOMKEY"]).await;
        if !reply.starts_with(b"$-1") {
            return reply;
        }
    }
    let mut out = Vec::new();
    out.nil(proto);
    out.into()
}

/// What is known of one shard's memory is asked of that shard: `MEMORY STATS ip:port`.
async fn memory(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Bytes {
    let raw = Bytes::from(resp::request(&request.words()[..2]));
    let asked = |node: u16| {
        let (conn, raw) = (c.conn(node), raw.clone());
        async move { call(&conn, raw, true, true).await }
    };
    if request.argc() > 2 {
        return match c.w.known_node(request.arg(2)) {
            Some(node) => asked(node).await,
            None => resp::error("ERR no such shard").into(),
        };
    }
    if request.cmd.name == "memory|purge" {
        return merged(&together(nodes.iter().map(|n| asked(*n)).collect()).await, merge::first);
    }
    if nodes.len() == 1 || c.w.mode.get() == Mode::Split {
        return asked(nodes[0]).await;
    }
    let name = request.cmd.name.replace('|', " ").to_uppercase();
    resp::error(format!("ERR say which shard: {name} ip:port")).into()
}

/// Members of a key for `gather`: its elements as texts.
pub async fn members(c: &Rc<Client>, key: &[u8], words: &[&[u8]]) -> Result<Bytes, Vec<u8>> {
    let node = c.w.slots[slot(key) as usize].get();
    if node == NONE {
        return Err(resp::error("CLUSTERDOWN Hash slot not served"));
    }
    let reply = seek(c, node, words, true).await;
    if reply.starts_with(b"-") { Err(reply.to_vec()) } else { Ok(reply) }
}

pub fn count(n: usize) -> Vec<u8> {
    integer(n as i64)
}
