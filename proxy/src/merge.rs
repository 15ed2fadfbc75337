//! Replies of several servers made into one. Pure functions; None: a reply is not what it should be.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::resp::{Replies, Value, Write, integer, number};
use crate::slow::Request;

/// The elements of an array as they stand in the reply.
pub fn elements(reply: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut at, count) = header(reply)?;
    let mut out = Vec::with_capacity(count.min(reply.len()));
    for _ in 0..count {
        let (n, end) = Replies::default().feed(&reply[at..]).ok()?;
        if !end {
            return None;
        }
        out.push(&reply[at..at + n]);
        at += n;
    }
    Some(out)
}

/// Where the elements begin, and how many they are.
fn header(reply: &[u8]) -> Option<(usize, usize)> {
    if !matches!(reply.first()?, b'*' | b'~') {
        return None;
    }
    let end = memchr::memchr(b'\r', reply)?;
    let count = number(&reply[1..end])?;
    (end + 2 <= reply.len()).then_some((end + 2, usize::try_from(count).ok()?))
}

/// Arrays one after the other.
pub fn concat(replies: &[Bytes]) -> Option<Vec<u8>> {
    let heads: Vec<_> = replies.iter().map(|r| header(r)).collect::<Option<_>>()?;
    let mut out = Vec::with_capacity(replies.iter().map(Bytes::len).sum());
    out.head(replies[0][0], heads.iter().map(|(_, n)| *n as i64).sum());
    for (reply, (at, _)) in replies.iter().zip(heads) {
        out.extend_from_slice(&reply[at..]);
    }
    Some(out)
}

pub fn sum(replies: &[Bytes]) -> Option<Vec<u8>> {
    let numbers = replies.iter().map(|r| match Value::parse(r) {
        Some(Value::Int(n)) => Some(n),
        _ => None,
    });
    Some(integer(numbers.sum::<Option<i64>>()?))
}

/// They are all the same if nothing failed.
pub fn first(replies: &[Bytes]) -> Option<Vec<u8>> {
    let fine = replies.iter().all(|r| !r.starts_with(b"-"));
    fine.then(|| replies[0].to_vec())
}

/// One success is enough.
pub fn success(replies: &[Bytes]) -> Option<Vec<u8>> {
    replies.iter().find(|r| !r.starts_with(b"-")).map(|r| r.to_vec())
}

/// Numbers of which each is 1 only if it is 1 everywhere.
pub fn all_set(replies: &[Bytes]) -> Option<Vec<u8>> {
    let mut all: Option<Vec<i64>> = None;
    for reply in replies {
        let own: Vec<i64> = Value::parse(reply)?.list()?.iter().map(Value::int).collect::<Option<_>>()?;
        all = Some(match all {
            None => own,
            Some(all) => all.iter().zip(own).map(|(a, b)| (*a).min(b)).collect(),
        });
    }
    let all = all?;
    let mut out = Vec::new();
    out.head(b'*', all.len() as i64);
    all.into_iter().for_each(|n| out.head(b':', n));
    Some(out)
}

/// Every text once.
pub fn unique(replies: &[Bytes], _proto: u8) -> Option<Vec<u8>> {
    let mut all = std::collections::BTreeSet::new();
    for reply in replies {
        for value in Value::parse(reply)?.list()? {
            all.insert(value.text()?.to_vec());
        }
    }
    let mut out = Vec::new();
    out.head(replies[0][0], all.len() as i64);
    all.into_iter().for_each(|text| out.bulk(&text));
    Some(out)
}

/// Names and numbers in turn; the numbers of a name are added up.
pub fn sum_pairs(replies: &[Bytes]) -> Option<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut sums: Vec<i64> = Vec::new();
    for reply in replies {
        let value = Value::parse(reply)?;
        for (i, pair) in value.list()?.chunks(2).enumerate() {
            let (name, n) = (pair[0].text()?, pair.get(1)?.int()?);
            if i == names.len() {
                names.push(name.to_vec());
                sums.push(0);
            }
            *sums.get_mut(i)? += n;
        }
    }
    let mut out = Vec::new();
    out.head(replies[0][0], if replies[0][0] == b'%' { names.len() } else { 2 * names.len() } as i64);
    for (name, n) in names.iter().zip(sums) {
        out.bulk(name);
        out.head(b':', n);
    }
    Some(out)
}

/// The youngest entries of all. An entry's number is its server's own.
pub fn slowlog(replies: &[Bytes], limit: usize) -> Option<Vec<u8>> {
    let mut all: Vec<(i64, &[u8])> = Vec::new();
    for reply in replies {
        for entry in elements(reply)? {
            all.push((Value::parse(entry)?.list()?.get(1)?.int()?, entry));
        }
    }
    all.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    all.truncate(limit);
    let mut out = Vec::new();
    out.head(b'*', all.len() as i64);
    all.into_iter().for_each(|(_, entry)| out.extend_from_slice(entry));
    Some(out)
}

/// How many entries SLOWLOG GET wants.
pub fn slowlog_limit(request: &Request) -> usize {
    let said = if request.argc() > 2 { number(request.arg(2)) } else { None };
    usize::try_from(said.unwrap_or(10)).unwrap_or(usize::MAX)
}

/// Fields of INFO that are added up; all others are the first shard's.
const SUMMED: &str = "used_memory used_memory_rss used_memory_peak used_memory_overhead used_memory_dataset \
    used_memory_lua used_memory_scripts maxmemory total_commands_processed instantaneous_ops_per_sec \
    total_net_input_bytes total_net_output_bytes expired_keys evicted_keys keyspace_hits keyspace_misses \
    total_error_replies total_reads_processed total_writes_processed rdb_changes_since_last_save blocked_clients \
    total_connections_received rejected_connections sync_full sync_partial_ok sync_partial_err mem_clients_normal \
    used_cpu_sys used_cpu_user instantaneous_input_kbps instantaneous_output_kbps aof_current_size";

/// The INFO of one large server that is not a cluster.
pub fn info(replies: &[Bytes], clients: usize, proto: u8) -> Vec<u8> {
    let texts: Vec<String> = replies
        .iter()
        .filter_map(|r| Value::parse(r)?.text().map(|t| String::from_utf8_lossy(t).into_owned()))
        .collect();
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    let mut keyspace: BTreeMap<&str, [i64; 3]> = BTreeMap::new();
    let mut counts: BTreeMap<&str, [f64; 4]> = BTreeMap::new();
    let mut order: Vec<&str> = Vec::new();
    for (name, value) in texts.iter().flat_map(|t| t.lines()).filter_map(|l| l.split_once(':')) {
        let parts = || value.split(',').filter_map(|p| p.split_once('='));
        if name.starts_with("db") && value.starts_with("keys=") {
            let own: Vec<i64> = parts().map(|(_, n)| n.parse().unwrap_or(0)).collect();
            let all = keyspace.entry(name).or_default();
            all[0] += own[0];
            all[1] += own.get(1).unwrap_or(&0);
            all[2] = all[2].max(*own.get(2).unwrap_or(&0));
        } else if name.starts_with("cmdstat_") {
            if !counts.contains_key(name) {
                order.push(name);
            }
            let all = counts.entry(name).or_default();
            for (part, n) in parts() {
                let at = ["calls", "usec", "rejected_calls", "failed_calls"].iter().position(|p| *p == part);
                if let Some(at) = at {
                    all[at] += n.parse::<f64>().unwrap_or(0.0);
                }
            }
        } else if let Ok(n) = value.parse::<f64>() {
            *sums.entry(name).or_default() += n;
        }
    }
    let mut out = String::new();
    for line in texts.first().map_or("", String::as_str).lines() {
        let Some((name, value)) = line.split_once(':') else {
            out.push_str(line);
            out.push_str("\r\n");
            if line == "# Keyspace" {
                for (db, [keys, expires, ttl]) in &keyspace {
                    out.push_str(&format!("{db}:keys={keys},expires={expires},avg_ttl={ttl}\r\n"));
                }
            }
            if line == "# Commandstats" {
                for name in &order {
                    let [calls, usec, rejected, failed] = counts[name];
                    let per = if calls > 0.0 { usec / calls } else { 0.0 };
                    out.push_str(&format!(
                        "{name}:calls={calls},usec={usec},usec_per_call={per:.2},rejected_calls={rejected},\
                         failed_calls={failed}\r\n"
                    ));
                }
            }
            continue;
        };
        if (name.starts_with("db") && value.starts_with("keys=")) || name.starts_with("cmdstat_") {
            continue;
        }
        let value = match name {
            "redis_mode" => "standalone".to_string(),
            "cluster_enabled" => "0".to_string(),
            "connected_clients" => clients.to_string(),
            _ if name.ends_with("_human") => {
                let plain = name.trim_end_matches("_human");
                if SUMMED.split_ascii_whitespace().any(|s| s == plain) {
                    human(sums.get(plain).copied().unwrap_or(0.0))
                } else {
                    value.to_string()
                }
            }
            _ if SUMMED.split_ascii_whitespace().any(|s| s == name) => {
                let sum = sums.get(name).copied().unwrap_or(0.0);
                if value.contains('.') { format!("{sum:.6}") } else { format!("{sum}") }
            }
            _ => value.to_string(),
        };
        out.push_str(&format!("{name}:{value}\r\n"));
    }
    let mut reply = Vec::with_capacity(out.len() + 24);
    reply.text(out.as_bytes(), proto);
    reply
}

fn human(n: f64) -> String {
    let mut n = n;
    for unit in ["B", "K", "M", "G"] {
        if n < 1024.0 {
            return if unit == "B" { format!("{n}B") } else { format!("{n:.2}{unit}") };
        }
        n /= 1024.0;
    }
    format!("{n:.2}T")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(texts: &[&str]) -> Vec<Bytes> {
        texts.iter().map(|t| Bytes::from(t.replace('|', "\r\n"))).collect()
    }

    #[test]
    fn replies_merge_as_one_server_would_have_said_it() {
        let text = |out: Option<Vec<u8>>| String::from_utf8(out.unwrap()).unwrap().replace("\r\n", "|");
        assert_eq!(text(concat(&replies(&["*1|$1|a|", "*0|", "*2|$1|b|:7|"]))), "*3|$1|a|$1|b|:7|");
        assert_eq!(text(sum(&replies(&[":1|", ":41|"]))), ":42|");
        assert_eq!(text(all_set(&replies(&["*2|:1|:1|", "*2|:0|:1|"]))), "*2|:0|:1|");
        assert_eq!(text(sum_pairs(&replies(&["*2|$1|a|:1|", "*2|$1|a|:2|"]))), "*2|$1|a|:3|");
        assert_eq!(text(unique(&replies(&["*1|$1|b|", "*2|$1|b|$1|a|"]), 2)), "*2|$1|a|$1|b|");
        assert!(sum(&replies(&["-ERR no|", ":1|"])).is_none());
        assert!(concat(&replies(&["*1|$1|a|", "-ERR|"])).is_none());
    }
}
