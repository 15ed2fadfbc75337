//! Which node has which slot: asked of the cluster (CLUSTER SLOTS) now and then, and at once when something fails.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::fanout::together;
use crate::resp::{MAX_BULK, Value};
use crate::upstream::{Conn, call};
use crate::world::{Ident, Key, NONE, Role, W, add};

/// A server is silent when it has not answered for so long.
pub const SILENT: Duration = Duration::from_millis(300);

const NO_ANSWER: &[u8] = b"-ERR no answer\r\n";

/// A question of the proxy's own.
pub async fn own_question(w: W, node: u16, words: &[&str]) -> Bytes {
    question(w, node, &w.own_ident(), words).await
}

async fn question(w: W, node: u16, ident: &Rc<Ident>, words: &[&str]) -> Bytes {
    let conn = Conn::get(w, Key { node, ident: ident.id, proto: 2, db: 0 }, 0, ident);
    let limit = Duration::from_millis(2 * w.config().times.connect_ms);
    let asked = call(&conn, w.request(words), true, true);
    tokio::time::timeout(limit, asked).await.unwrap_or(Bytes::from_static(NO_ANSWER))
}

/// One look at the cluster. False: nobody could say.
pub async fn refresh(w: W) -> bool {
    add(&w.count.refreshes, 1);
    let mut nodes = w.masters();
    for server in &w.config().servers {
        let node = w.node(server);
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    // Not always the same one: it might be cut off from the others.
    let start = w.turn.get() as usize % nodes.len();
    w.turn.set(w.turn.get() + 1);
    nodes.rotate_left(start);
    let Some(node) = learn(w, nodes).await else { return false };
    meet(w, node).await;
    w.looked.notify_one();
    true
}

/// Takes over what the first of these says that knows who has each slot, or else the first that says anything: one
/// that slots come to may know nothing of one of them for a moment. Each is asked when those before it are silent.
async fn learn(w: W, nodes: Vec<u16>) -> Option<u16> {
    let (say, mut said) = mpsc::unbounded_channel();
    let (mut left, mut open) = (nodes.into_iter(), 0);
    let mut partly: Option<(u16, Bytes)> = None;
    loop {
        if let Some(node) = left.next() {
            let say = say.clone();
            open += 1;
            spawn_local(async move {
                let reply = own_question(w, node, &["CLUSTER", "SLOTS"]).await;
                let _ = say.send((node, reply));
            });
        } else if open == 0 {
            let (node, reply) = partly?;
            return adopt(w, node, &reply, false).then_some(node);
        }
        if let Ok(Some((node, reply))) = tokio::time::timeout(SILENT, said.recv()).await {
            open -= 1;
            if adopt(w, node, &reply, true) {
                return Some(node);
            }
            if reply.starts_with(b"*") {
                partly.get_or_insert((node, reply));
            }
        }
    }
}

/// Whether the masters answer, asked after each look. Not within it: one that hangs would hold it up, just when it
/// matters.
pub async fn look_after_masters(w: W) {
    loop {
        w.looked.notified().await;
        let masters = w.masters();
        let asked = masters.iter().map(|node| async move {
            let reply = own_question(w, *node, &["PING"]).await;
            // Silent once may be busy.
            if reply == NO_ANSWER { own_question(w, *node, &["PING"]).await } else { reply }
        });
        let replies = together(asked.collect()).await;
        let nodes = w.nodes.borrow();
        for (node, reply) in masters.into_iter().zip(replies) {
            // An account that may not ask is told so by a server that works.
            nodes[node as usize].healthy.set(!reply.starts_with(b"-ERR") && !reply.starts_with(b"-LOADING"));
        }
    }
}

/// What clients must know of the servers, and what the servers take from clients. It is not waited for when the
/// server hangs: who comes in its place would not be seen meanwhile.
pub async fn meet(w: W, node: u16) {
    let _ = tokio::time::timeout(SILENT, spawn_local(ask_for_ways(w, node))).await;
}

async fn ask_for_ways(w: W, node: u16) {
    let own = w.own_ident();
    let asked: [(&Rc<Ident>, &[&str]); 3] =
        [(&w.anonymous, &["PING"]), (&own, &["INFO", "server"]), (&own, &["CONFIG", "GET", "proto-max-bulk-len"])];
    let replies = together(asked.iter().map(|(ident, words)| question(w, node, ident, words)).collect()).await;
    let [ping, info, limit] = &replies[..] else { return };
    w.locked.set(ping.starts_with(b"-NOAUTH") || (ping == NO_ANSWER && w.locked.get()));
    let text = String::from_utf8_lossy(info);
    if let Some(version) = text.lines().find_map(|line| line.strip_prefix("redis_version:")) {
        *w.version.borrow_mut() = version.trim().to_string();
    }
    if limit == NO_ANSWER || w.config().limits.max_argument > 0 {
        return;
    }
    let limit = Value::parse(limit).and_then(|pair| pair.list()?.get(1)?.int());
    w.max_bulk.set(limit.map_or(MAX_BULK, |limit| limit.clamp(0, MAX_BULK)));
}

/// Takes over what a node says of the slots, unless it is to say something of all and does not.
fn adopt(w: W, asked: u16, reply: &[u8], all: bool) -> bool {
    let Some(Value::List(ranges)) = Value::parse(reply) else { return false };
    let own = w.addr(asked);
    let host = own.rsplit_once(':').map_or("", |(host, _)| host).to_string();
    let mut table = vec![NONE; w.slots.len()];
    let mut replicas = HashMap::new();
    for range in &ranges {
        let Some([Value::Int(from), Value::Int(to), nodes @ ..]) = range.list() else { return false };
        let mut master = NONE;
        for (i, node) in nodes.iter().enumerate() {
            let Some([name, Value::Int(port), ..]) = node.list() else { return false };
            let name = name.text().map(String::from_utf8_lossy).filter(|n| !n.is_empty() && n != "?");
            let addr = format!("{}:{port}", name.as_deref().unwrap_or(&host));
            let node = w.node(&addr);
            if i > 0 {
                replicas.insert(node, master);
                continue;
            }
            master = node;
            let (Ok(from), Ok(to)) = (usize::try_from(*from), usize::try_from(*to)) else { return false };
            let Some(part) = table.get_mut(from..=to) else { return false };
            part.fill(node);
        }
    }
    let unknown = table.iter().filter(|n| **n == NONE).count();
    if unknown == table.len() || (all && unknown > 0) {
        return false;
    }
    let mut changed = false;
    for (cell, node) in w.slots.iter().zip(&table) {
        changed |= cell.replace(*node) != *node;
    }
    if changed {
        w.bump();
    }
    for (i, node) in w.nodes.borrow().iter().enumerate() {
        let at = i as u16;
        let master = table.contains(&at);
        node.healthy.set(replicas.contains_key(&at) || (master && node.healthy.get()));
        node.follows.set(replicas.get(&at).copied().filter(|_| !master).unwrap_or(NONE));
        node.role.set(match () {
            () if master => Role::Master,
            () if replicas.contains_key(&at) => Role::Replica,
            () => Role::Unknown,
        });
    }
    true
}
