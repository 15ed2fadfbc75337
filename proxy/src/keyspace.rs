//! Commands about all keys, where a cluster holds several databases (`databases`): answered for the client's own
//! database alone. Nobody keeps count of a database, so the keys are gone through (SCAN, a piece at a time, all
//! shards at once): what takes no time on a server takes as long here as there are keys.

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use crate::client::Client;
use crate::databases::{own, pattern, split, without};
use crate::fanout::{each, failure, together};
use crate::merge;
use crate::resp::{self, OK, Value, Write, integer};
use crate::slow::{Request, ask, seek};

/// Keys in one step of going through.
const STEP: &str = "1000";
/// What is counted for INFO is good for so many times as long as the counting took.
const REST: u64 = 20;
/// Keys of any database that are drawn, before one of the right database is looked for.
const DRAWS: usize = 16;

/// How many keys each database has but 0, until when (milliseconds) that is good.
pub type Census = (u64, BTreeMap<u32, i64>);

/// The reply, of commands that are of another kind because there are several databases.
pub async fn command(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Option<Bytes> {
    let reply: Result<Vec<u8>, Bytes> = match request.cmd.name {
        "keys" => keys(c, request, nodes).await,
        "dbsize" => size(c, nodes).await.map(integer),
        "flushdb" => flush(c, request, nodes).await,
        "randomkey" => random(c, nodes).await,
        "slowlog|get" => slowlog(c, request, nodes).await,
        _ => return None,
    };
    Some(reply.map_or_else(|error| error, Bytes::from))
}

async fn keys(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Result<Vec<u8>, Bytes> {
    let db = c.db.get();
    let pattern = pattern(db, request.arg(1));
    let words = [&b"KEYS"[..], &pattern];
    let replies = together(nodes.iter().map(|node| ask(c, *node, &words)).collect()).await;
    let lists: Option<Vec<Bytes>> = replies.iter().map(|reply| own(db, reply).map(Bytes::from)).collect();
    let odd = || failure(&replies).unwrap_or_else(|| replies[0].clone());
    merge::concat(&lists.ok_or_else(odd)?).ok_or_else(odd)
}

/// Goes through the keys of a node that fit, and shows each piece of them to `see`.
async fn sweep(
    c: &Rc<Client>,
    node: u16,
    pattern: &[u8],
    mut see: impl AsyncFnMut(Vec<Vec<u8>>) -> Result<bool, Bytes>,
) -> Result<(), Bytes> {
    let mut cursor = b"0".to_vec();
    loop {
        let words = [&b"SCAN"[..], &cursor, b"MATCH", pattern, b"COUNT", STEP.as_bytes()];
        let reply = ask(c, node, &words).await;
        let page = match Value::parse(&reply) {
            Some(Value::List(pair)) => match (pair.first().and_then(Value::text), pair.get(1).and_then(Value::list)) {
                (Some(next), Some(keys)) => {
                    cursor = next.to_vec();
                    Some(keys.iter().filter_map(Value::text).map(<[u8]>::to_vec).collect())
                }
                _ => None,
            },
            _ => None,
        };
        let Some(page) = page else { return Err(reply) };
        if !see(page).await? || cursor == b"0" {
            return Ok(());
        }
    }
}

/// How many keys every database has, but 0.
async fn count(c: &Rc<Client>, nodes: &[u16], pattern: &[u8]) -> Result<BTreeMap<u32, i64>, Bytes> {
    let swept = nodes.iter().map(|node| async move {
        let mut all: BTreeMap<u32, i64> = BTreeMap::new();
        sweep(c, *node, pattern, async |page| {
            for key in page {
                *all.entry(split(&key).0).or_default() += 1;
            }
            Ok(true)
        })
        .await?;
        Ok::<_, Bytes>(all)
    });
    let mut all = BTreeMap::new();
    for part in together(swept.collect()).await {
        for (db, n) in part? {
            *all.entry(db).or_default() += n;
        }
    }
    all.remove(&0);
    Ok(all)
}

/// Keys of all databases but 0, as well as a pattern can say it.
const ELSEWHERE: &[u8] = b"\x01[1-9]*";

async fn size(c: &Rc<Client>, nodes: &[u16]) -> Result<i64, Bytes> {
    let db = c.db.get();
    if db > 0 {
        let all = count(c, nodes, &pattern(db, b"*")).await?;
        return Ok(all.get(&db).copied().unwrap_or(0));
    }
    let others: i64 = count(c, nodes, ELSEWHERE).await?.values().sum();
    let replies = together(nodes.iter().map(|node| ask(c, *node, &["DBSIZE"])).collect()).await;
    let sizes: Option<i64> = replies.iter().map(|reply| Value::parse(reply)?.int()).sum();
    let all = sizes.ok_or_else(|| failure(&replies).unwrap_or_else(|| replies[0].clone()))?;
    Ok((all - others).max(0))
}

/// What is written while it is under way may stay.
async fn flush(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Result<Vec<u8>, Bytes> {
    if request.argc() > 2 || (request.argc() == 2 && !request.is(1, "async") && !request.is(1, "sync")) {
        return Err(resp::error("ERR syntax error").into());
    }
    let db = c.db.get();
    let pattern = &pattern(db, b"*");
    let swept = nodes.iter().map(|node| {
        let node = *node;
        sweep(c, node, pattern, async move |page: Vec<Vec<u8>>| {
            let own = page.iter().filter(|key| split(key).0 == db);
            let ended = own.map(|key| async move { seek(c, node, &[&b"UNLINK"[..], key], true).await });
            let replies = together(ended.collect()).await;
            failure(&replies).map_or(Ok(true), Err)
        })
    });
    together(swept.collect()).await.into_iter().collect::<Result<(), _>>()?;
    Ok(OK.to_vec())
}

async fn random(c: &Rc<Client>, nodes: &[u16]) -> Result<Vec<u8>, Bytes> {
    let db = c.db.get();
    let (mut out, proto) = (Vec::new(), c.proto.get());
    for _ in 0..DRAWS {
        let turn = c.w.turn.get();
        c.w.turn.set(turn + 1);
        let reply = ask(c, nodes[turn as usize % nodes.len()], &["RANDOMKEY"]).await;
        match Value::parse(&reply) {
            Some(Value::Text(key)) if split(key).0 == db => {
                out.bulk(split(key).1);
                return Ok(out);
            }
            Some(Value::Text(_) | Value::Nil) => {}
            _ => return Err(reply),
        }
    }
    let pattern = pattern(db, b"*");
    for node in nodes {
        let found = &mut out;
        sweep(c, *node, &pattern, async |page| {
            if let Some((_, key)) = page.iter().map(|key| split(key)).find(|(of, _)| *of == db) {
                found.bulk(key);
            }
            Ok(found.is_empty())
        })
        .await?;
        if !out.is_empty() {
            return Ok(out);
        }
    }
    out.nil(proto);
    Ok(out)
}

async fn slowlog(c: &Rc<Client>, request: &Request, nodes: &[u16]) -> Result<Vec<u8>, Bytes> {
    let replies = each(c, nodes, request).await;
    let limit = merge::slowlog_limit(request);
    let odd = || failure(&replies).unwrap_or_else(|| replies[0].clone());
    merge::slowlog(&replies, limit).and_then(|merged| without(&merged)).ok_or_else(odd)
}

/// INFO's part about keys, a line for each database. When they expire nobody counts for each: all that do stand
/// with database 0.
pub async fn info(c: &Rc<Client>, nodes: &[u16], reply: Bytes) -> Bytes {
    let Some(Value::Text(text)) = Value::parse(&reply) else { return reply };
    let text = String::from_utf8_lossy(text).into_owned();
    let Some((before, after)) = text.split_once("# Keyspace\r\n") else { return reply };
    let census = census(c, nodes).await;
    let others: i64 = census.values().sum();
    let mut out = format!("{before}# Keyspace\r\n");
    for line in after.lines() {
        let Some(rest) = line.strip_prefix("db0:keys=") else {
            out.push_str(line);
            out.push_str("\r\n");
            continue;
        };
        let (keys, rest) = rest.split_once(',').unwrap_or((rest, ""));
        let own = keys.parse::<i64>().unwrap_or(0) - others;
        if own > 0 {
            out.push_str(&format!("db0:keys={own},{rest}\r\n"));
        }
        for (db, keys) in &census {
            out.push_str(&format!("db{db}:keys={keys},expires=0,avg_ttl=0\r\n"));
        }
    }
    let mut reply = Vec::new();
    reply.text(out.as_bytes(), c.proto.get());
    reply.into()
}

async fn census(c: &Rc<Client>, nodes: &[u16]) -> BTreeMap<u32, i64> {
    let since = c.w.clock();
    let (until, counted) = c.w.census.borrow().clone();
    if since < until {
        return counted;
    }
    // Who may not look at keys is not told of them.
    let counted = count(c, nodes, ELSEWHERE).await.unwrap_or_default();
    let took = c.w.clock() - since;
    *c.w.census.borrow_mut() = (c.w.clock() + REST * took, counted.clone());
    counted
}
