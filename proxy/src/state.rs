//! What the proxy says of itself: `state` (JSON) and `metrics` (Prometheus).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;

use serde::Serialize;
use serde_json::json;

use crate::command::names;
use crate::config::Mode;
use crate::stats::Stat;
use crate::world::{NONE, Role, W};

#[derive(Serialize)]
struct Server {
    server: String,
    role: &'static str,
    healthy: bool,
    weight: u32,
    slots: usize,
}

/// Whether it knows a server for everything that may be asked: the master, or one for each slot.
pub fn ready(w: W) -> bool {
    let nodes = w.nodes.borrow();
    let serves =
        |node: u16| nodes.get(node as usize).is_some_and(|node| node.healthy.get() && node.role.get() == Role::Master);
    let known = w.known.borrow().as_ref().is_some_and(|config| Rc::ptr_eq(config, &w.config()));
    known
        && match w.mode.get() {
            Mode::Split => serves(w.master.get()),
            Mode::Cluster => w.slots.iter().all(|cell| cell.get() != NONE) && w.masters().into_iter().all(serves),
        }
}

fn counters(w: W) -> [(&'static str, &'static str, u64); 12] {
    let count = &w.count;
    [
        ("commands", "counter", count.commands.get()),
        ("commands_per_second", "gauge", w.stats.rates.get()[0]),
        ("connections_accepted", "counter", count.accepted.get()),
        ("connections_rejected", "counter", count.rejected.get()),
        ("clients_cut", "counter", count.cut.get()),
        ("redirections", "counter", count.redirected.get()),
        ("retries", "counter", count.retried.get()),
        ("topology_refreshes", "counter", count.refreshes.get()),
        ("input_bytes", "counter", count.bytes_in.get()),
        ("output_bytes", "counter", count.bytes_out.get()),
        ("server_input_bytes", "counter", count.server_in.get()),
        ("server_output_bytes", "counter", count.server_out.get()),
    ]
}

fn used(w: W) -> impl Iterator<Item = (&'static str, &'static Stat)> {
    names().into_iter().zip(&w.stats.commands).filter(|(_, stat)| stat.calls.get() > 0)
}

/// Seconds of processor time since the start, and bytes of memory, as the kernel counts them.
fn usage() -> (f64, u64) {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let stat = read("stat");
    // After the program's name, in which anything may stand: user and system time are 14th and 15th.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    let status = read("status");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kb = memory.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    // Linux counts hundredths of a second on every machine that it runs on here.
    (ticks as f64 / 100.0, kb.unwrap_or(0) * 1024)
}

pub fn state(w: W) -> String {
    let config = w.config();
    let mut out = json!({
        "mode": w.mode.get(),
        "pid": std::process::id(),
        "uptime_ms": w.clock(),
        "ready": ready(w),
        "config_digest": config.digest,
        "listen": config.listen,
        "tls": w.tls.borrow().is_some(),
        "maxclients": config.limits.maxclients,
        "clients": w.clients.borrow().len(),
        "version": *w.version.borrow(),
    });
    for (name, _, n) in counters(w) {
        out[name] = n.into();
    }
    let [_, input, output] = w.stats.rates.get();
    out["input_kbps"] = (input as f64 / 1024.0).into();
    out["output_kbps"] = (output as f64 / 1024.0).into();
    let (mean, max) = w.stats.latency_ms();
    out["latency_mean_ms"] = mean.into();
    out["latency_max_ms"] = max.into();
    let (cpu, memory) = usage();
    out["cpu_seconds"] = cpu.into();
    out["memory"] = memory.into();
    let upstreams = w.pools.borrow();
    let upstreams = upstreams.values().map(|conn| {
        json!({
            "server": w.addr(conn.key.node),
            "user": conn.ident.user.as_deref().map(|u| String::from_utf8_lossy(u).into_owned()),
            "proto": conn.key.proto,
            "db": conn.key.db,
            "ready": conn.ready.get(),
            "in_flight": conn.in_flight(),
        })
    });
    out["upstreams"] = upstreams.collect();
    out["calls"] = json!(used(w).map(|(name, stat)| (name, stat.calls.get())).collect::<BTreeMap<_, _>>());
    let stats = used(w).map(|(name, stat)| {
        (name, json!({"calls": stat.calls.get(), "usec": stat.total_us.get(), "max_usec": stat.max_us.get()}))
    });
    out["commandstats"] = json!(stats.collect::<BTreeMap<_, _>>());
    // In this order: role and health are what people look for.
    let servers = serde_json::to_string(&servers(w)).unwrap_or_default();
    let mut text = out.to_string();
    text.pop();
    format!("{text},\"servers\":{servers}}}\n")
}

/// Those of the configuration and of the topology; what is left of former ones is not shown.
fn servers(w: W) -> Vec<Server> {
    let config = w.config();
    let mut slots: Vec<usize> = vec![0; w.nodes.borrow().len()];
    for cell in &w.slots {
        if let Some(n) = slots.get_mut(cell.get() as usize) {
            *n += 1;
        }
    }
    let nodes = w.nodes.borrow();
    let shown = nodes
        .iter()
        .zip(slots)
        .filter(|(node, _)| node.role.get() != Role::Unknown || config.servers.contains(&node.addr));
    shown
        .map(|(node, slots)| Server {
            server: node.addr.clone(),
            role: node.role.get().name(),
            healthy: node.healthy.get(),
            weight: node.weight.get(),
            slots,
        })
        .collect()
}

pub fn metrics(w: W) -> String {
    let mut out = String::new();
    let mut put = |name: &str, kind: &str, value: String| {
        let _ = writeln!(out, "# TYPE cacheyard_proxy_{name} {kind}\ncacheyard_proxy_{name} {value}");
    };
    put("clients", "gauge", w.clients.borrow().len().to_string());
    put("upstreams", "gauge", w.pools.borrow().len().to_string());
    put("ready", "gauge", u8::from(ready(w)).to_string());
    for (name, kind, n) in counters(w) {
        let name = if kind == "counter" { format!("{name}_total") } else { name.into() };
        put(&name, kind, n.to_string());
    }
    let (mean, max) = w.stats.latency_ms();
    put("latency_mean_seconds", "gauge", (mean / 1000.0).to_string());
    put("latency_max_seconds", "gauge", (max / 1000.0).to_string());
    let (cpu, memory) = usage();
    put("cpu_seconds_total", "counter", cpu.to_string());
    put("memory_bytes", "gauge", memory.to_string());
    type Figure = fn(&Stat) -> String;
    let figures: [(&str, &str, Figure); 3] = [
        ("calls_total", "counter", |stat| stat.calls.get().to_string()),
        ("usec_total", "counter", |stat| stat.total_us.get().to_string()),
        ("usec_max", "gauge", |stat| stat.max_us.get().to_string()),
    ];
    for (name, kind, figure) in figures {
        let _ = writeln!(out, "# TYPE cacheyard_proxy_{name} {kind}");
        for (command, stat) in used(w) {
            let _ = writeln!(out, "cacheyard_proxy_{name}{{command=\"{command}\"}} {}", figure(stat));
        }
    }
    out
}
