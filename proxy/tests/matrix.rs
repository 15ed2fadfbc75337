//! Every command with a plain server and through the proxy, in both protocol versions: the same replies, or a
//! difference that is written down here. `cargo test --test matrix -- --ignored --nocapture print_differences` prints
//! these as a table.

mod common;

use std::collections::BTreeSet;

use cacheyard_proxy::command::names;
use cacheyard_proxy::table::COMMANDS;
use common::{Client, Cluster, Proxy, Server};

type Line = Vec<String>;

fn words(text: &str) -> Line {
    text.split_ascii_whitespace().map(|word| word.replace("\\n", "\n").replace("\\x20", " ")).collect()
}

const MATRIX: &str = include_str!("matrix.txt");

#[derive(Clone, Copy, PartialEq)]
enum Where {
    Cluster,
    Split,
    Both,
}
use Where::{Both, Split};

/// Commands that answer differently through the proxy, by line or by name, and why.
const DIFFERS: &[(Where, &str, &str)] = &[
    (Where::Cluster, "FUNCTION STATS", "of one shard"),
    (Where::Cluster, "SCAN 0", "goes on in the next shard: the cursor is not 0 at the end of the first"),
    (Where::Cluster, "SCAN 0 COUNT 1000 MATCH {k}* TYPE string", "goes on in the next shard"),
    (Where::Cluster, "MEMORY USAGE {k}a", "nodes of a cluster keep a little more about a key"),
    (Where::Cluster, "MEMORY DOCTOR", "asks for a shard: `MEMORY DOCTOR ip:port`"),
    (Where::Cluster, "MEMORY MALLOC-STATS", "asks for a shard: `MEMORY MALLOC-STATS ip:port`"),
    (Where::Cluster, "MEMORY STATS", "asks for a shard: `MEMORY STATS ip:port`"),
    (Both, "CLIENT NO-TOUCH on", "taken and without effect on servers before 7.2, which do not know it"),
    (Both, "CLIENT SETINFO lib-name x", "kept by the proxy, as redis 7.2 does; 7.0 does not know it"),
    (Where::Cluster, "FCALL_RO mget1 0", "without keys nobody knows where: as EVAL without keys"),
];

/// What no two servers say alike: only that there is an answer of the same kind is compared.
const VOLATILE: &[&str] = &[
    "ACL GENPASS",
    "CLIENT ID",
    "CLIENT INFO",
    "INFO",
    "INFO server",
    "LATENCY DOCTOR",
    "MEMORY DOCTOR",
    "MEMORY MALLOC-STATS",
    "MEMORY STATS",
    "MONITOR",
    "OBJECT IDLETIME {k}a",
    "ROLE",
    "SLOWLOG GET",
    "TIME",
];

/// What is refused, as on DCS' proxied instances: an error as for a command that does not exist.
const REFUSED: &[(Where, &str, &str)] = &[
    (
        Both,
        "migrate wait psync sync replicaof slaveof replconf failover restore-asking readonly readwrite asking",
        "replication and topology are the service's",
    ),
    (Both, "bgsave bgrewriteaof save lastsave shutdown", "persistence and processes are the service's"),
    (Both, "debug pfdebug pfselftest script|debug lolwut", "for those who make redis-server"),
    (Both, "module|list module|load module|loadex module|unload module|help", "no modules"),
    (Both, "swapdb", "not on proxied instances"),
    (Split, "icluster|nodes", "there is no cluster behind it"),
    (
        Both,
        "acl|deluser acl|dryrun acl|getuser acl|list acl|load acl|log acl|save acl|setuser acl|users",
        "accounts are the service's",
    ),
    (
        Both,
        "client|caching client|getredir client|tracking client|trackinginfo client|pause client|unpause \
         client|unblock",
        "connections to servers are shared: no client-side caching",
    ),
    (Both, "config|set config|resetstat config|rewrite", "parameters are the service's"),
    (Where::Cluster, "move", "one database"),
    (
        Where::Cluster,
        "latency|doctor latency|graph latency|help latency|histogram latency|history latency|latest latency|reset",
        "of one server, and there are several",
    ),
    (
        Where::Cluster,
        "cluster|addslots cluster|addslotsrange cluster|bumpepoch cluster|count-failure-reports cluster|delslots \
         cluster|delslotsrange cluster|failover cluster|flushslots cluster|forget cluster|meet cluster|replicate \
         cluster|reset cluster|saveconfig cluster|set-config-epoch cluster|setslot",
        "the cluster is not seen",
    ),
];

/// What changes a plain server for good, or its connection: not asked of one here.
const NOT_ASKED: &str = "auth hello subscribe psubscribe ssubscribe unsubscribe punsubscribe sunsubscribe";

fn applies(place: Where, mode: Where) -> bool {
    place == Both || place == mode
}

fn lines() -> Vec<(Vec<Line>, Line)> {
    let mut fixture = Vec::new();
    let mut out = Vec::new();
    for line in MATRIX.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.strip_prefix('=') {
            Some(setup) => fixture = setup.split(" ; ").map(words).filter(|w| !w.is_empty()).collect(),
            None => out.push((fixture.clone(), words(line))),
        }
    }
    out
}

/// Order means nothing in sets, hashes and the like.
fn sorted(reply: &[u8]) -> Vec<u8> {
    let mut bytes = reply.to_vec();
    bytes.sort_unstable();
    bytes
}

struct Difference {
    proto: &'static str,
    line: String,
    direct: String,
    proxy: String,
}

/// The name by which the proxy knows what a line says: with its subcommand, if it has those.
fn refused(mode: Where, line: &Line) -> Option<&'static str> {
    let name = line[0].to_lowercase();
    let full = line.get(1).map_or(name.clone(), |sub| format!("{name}|{}", sub.to_lowercase()));
    let found = REFUSED
        .iter()
        .find(|(place, list, _)| applies(*place, mode) && list.split(' ').any(|word| word == name || word == full));
    found.map(|(_, _, why)| *why)
}

fn compare(direct: &Server, proxy: &Proxy) -> (usize, Vec<Difference>) {
    let (mut count, mut out) = (0, Vec::new());
    for proto in ["2", "3"] {
        for (setup, command) in lines() {
            let run = |c: &mut Client| {
                if proto == "3" {
                    c.ask(&["HELLO", "3"]);
                }
                c.ask(&["FLUSHALL"]);
                c.ask(&["FUNCTION", "FLUSH"]);
                for line in &setup {
                    c.send(line);
                    if line.join(" ") != "CLIENT REPLY SKIP" {
                        c.receive();
                    }
                }
                if setup.iter().any(|l| l.join(" ") == "CLIENT REPLY SKIP") {
                    c.send(&command);
                    return c.ask(&["ECHO", "next"]);
                }
                c.ask(&command)
            };
            let (want, got) = (run(&mut direct.client()), run(&mut proxy.client()));
            count += 1;
            let line = command.join(" ");
            let alike = VOLATILE.contains(&&line[..]) && want[0] == got[0];
            if !alike && want != got && sorted(&want) != sorted(&got) {
                let cut = |r: &[u8]| r.escape_ascii().to_string().chars().take(300).collect::<String>();
                out.push(Difference { proto, line, direct: cut(&want), proxy: cut(&got) });
            }
        }
    }
    (count, out)
}

fn reason(mode: Where, line: &str) -> Option<&'static str> {
    let found = DIFFERS.iter().find(|(place, text, _)| applies(*place, mode) && *text == line);
    found.map(|(_, _, why)| *why).or_else(|| refused(mode, &words(line)))
}

fn only_what_is_written_down(mode: Where, direct: &Server, proxy: &Proxy) {
    let (count, differences) = compare(direct, proxy);
    let odd: Vec<String> = differences
        .iter()
        .filter(|d| reason(mode, &d.line).is_none())
        .map(|d| format!("RESP{} {}\n   direct {}\n   proxy  {}", d.proto, d.line, d.direct, d.proxy))
        .collect();
    assert!(odd.is_empty(), "{} of {count} differ:\n{}", odd.len(), odd.join("\n"));
    assert!(count > 850, "only {count} lines");
    // What is refused is what the list says, and nothing else is.
    let mut c = proxy.client();
    for cmd in COMMANDS.iter().flat_map(|cmd| std::iter::once(cmd).chain(cmd.subs)) {
        let listed = REFUSED
            .iter()
            .any(|(place, list, _)| applies(*place, mode) && list.split(' ').any(|name| name == cmd.name));
        let asked = NOT_ASKED.split(' ').any(|name| name == cmd.name) || !cmd.subs.is_empty();
        if asked || (!listed && matches!(cmd.name, "monitor" | "quit" | "multi" | "exec")) {
            continue;
        }
        let mut line: Vec<&str> = cmd.name.split('|').collect();
        line.resize(line.len().max(cmd.arity.unsigned_abs() as usize), "1");
        if !listed && (cmd.name.contains("reply") || cmd.name.contains("kill") || cmd.name.starts_with('b')) {
            continue;
        }
        let said = c.show(&line);
        let unknown = said.starts_with("-ERR unknown command") || said.starts_with("-ERR unknown subcommand");
        assert_eq!(unknown, listed, "{}: {said}", cmd.name);
    }
}

fn cluster() -> (Server, Cluster, Proxy) {
    let (direct, cluster) = (Server::start(&[]), Cluster::start(3, false));
    let proxy = Proxy::start("cluster", &cluster.addrs(), "");
    (direct, cluster, proxy)
}

fn split() -> (Server, Server, Proxy) {
    let (direct, master) = (Server::start(&[]), Server::start(&[]));
    // Reads go to the master here: what a replica has not yet is not what is compared.
    let proxy = Proxy::start("split", &[master.addr()], "");
    (direct, master, proxy)
}

#[test]
fn replies_in_front_of_a_cluster_are_those_of_a_plain_server() {
    let (direct, _cluster, proxy) = cluster();
    only_what_is_written_down(Where::Cluster, &direct, &proxy);
}

#[test]
fn replies_of_split_servers_are_those_of_a_plain_server() {
    let (direct, _master, proxy) = split();
    only_what_is_written_down(Split, &direct, &proxy);
}

#[test]
fn every_command_of_the_table_is_compared_or_refused() {
    let said: BTreeSet<String> = lines()
        .into_iter()
        .flat_map(|(setup, line)| setup.into_iter().chain([line]))
        .flat_map(|line| {
            let name = line[0].to_lowercase();
            let full = line.get(1).map_or(name.clone(), |sub| format!("{name}|{}", sub.to_lowercase()));
            [name, full]
        })
        .collect();
    // Of one server, where the cluster is not seen: all have the same answer there.
    let same = "cluster|getkeysinslot cluster|links cluster|replicas cluster|shards cluster|slaves";
    let missing: Vec<&str> = names()
        .into_iter()
        .filter(|name| !name.is_empty() && !said.contains(*name))
        .filter(|name| !REFUSED.iter().any(|(_, list, _)| list.split(' ').any(|refused| refused == *name)))
        .filter(|name| !same.split(' ').chain(NOT_ASKED.split(' ')).any(|other| other == *name))
        .filter(|name| !COMMANDS.iter().any(|cmd| cmd.name == *name && !cmd.subs.is_empty()))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
#[ignore = "prints a table: all differences from a plain server, in markdown"]
fn print_differences() {
    println!("| command | where | what differs |\n|---|---|---|");
    let place = |place: Where| match place {
        Where::Cluster => "cluster",
        Split => "split",
        Both => "both",
    };
    for (at, list, why) in REFUSED {
        let names: Vec<String> =
            list.split(' ').map(|name| format!("`{}`", name.replace('|', " ").to_uppercase())).collect();
        println!("| {} | {} | refused: {why} |", names.join(" "), place(*at));
    }
    let (direct, _cluster, in_front) = cluster();
    let (_, of_cluster) = compare(&direct, &in_front);
    let (direct, _master, in_front) = split();
    let (_, of_split) = compare(&direct, &in_front);
    let lines = |all: &[Difference]| -> BTreeSet<String> { all.iter().map(|d| d.line.clone()).collect() };
    let (of_cluster, of_split) = (lines(&of_cluster), lines(&of_split));
    for line in of_cluster.union(&of_split) {
        let at = match (of_cluster.contains(line), of_split.contains(line)) {
            (true, true) => Both,
            (true, false) => Where::Cluster,
            _ => Split,
        };
        let mode = if at == Split { Split } else { Where::Cluster };
        if refused(mode, &words(line)).is_none() {
            println!("| `{line}` | {} | {} |", place(at), reason(mode, line).unwrap_or("NOT WRITTEN DOWN"));
        }
    }
}
