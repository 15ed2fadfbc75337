//! Which way each command takes. Decided once per configuration, by the command table and a few lists of names.

use crate::command::Cmd;
use crate::config::{Config, Mode};
use crate::slot::slot;
use crate::table::{BLOCKING, COMMANDS, COUNT, MAY_REPLICATE, READONLY, WRITE};
use crate::world::{NONE, W};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// cluster: to the node that has the slot of the key at this position.
    Key(u8),
    /// cluster: the same, with any number of keys, which must share a slot.
    Keys,
    /// cluster: the same, but keys of several slots are taken apart (`fanout`).
    Split,
    /// To any node.
    Any,
    /// cluster: to the one shard that speaks to subscribers.
    Speaker,
    /// split.
    Master,
    /// split: to a replica.
    Read,
    /// split: to a replica if the account may only read.
    Script,
    /// Waits in the server, so it needs a connection of its own.
    Block,
    /// Done step by step, by name (`slow`).
    Slow,
    Refuse,
}

/// What proxied instances never have, nor can have.
const REFUSED: &str = "migrate wait bgrewriteaof bgsave debug lastsave psync sync replicaof slaveof save shutdown \
    lolwut module module|help module|list module|load module|loadex module|unload swapdb readonly readwrite asking failover \
    replconf restore-asking pfdebug pfselftest script|debug \
    acl|deluser acl|dryrun acl|getuser acl|list acl|load acl|log acl|save acl|setuser acl|users \
    client|caching client|getredir client|tracking client|trackinginfo client|pause client|unpause client|unblock \
    config|set config|resetstat config|rewrite";
const REFUSED_CLUSTER: &str = "move latency latency|doctor latency|graph latency|help latency|histogram \
    latency|history latency|latest latency|reset";

/// Commands that change what a connection is, or that the proxy answers.
const SLOW: &str = "auth hello reset select quit multi exec discard watch unwatch monitor \
    subscribe unsubscribe psubscribe punsubscribe ssubscribe sunsubscribe \
    client|id client|setname client|getname client|list client|kill client|setinfo client|reply client|no-evict \
    client|info client|no-touch script|load script|flush script|exists info";
const SLOW_CLUSTER: &str = "keys scan dbsize flushall flushdb randomkey config|get \
    slowlog|get slowlog|len slowlog|reset memory|doctor memory|malloc-stats memory|purge memory|stats \
    pubsub|channels pubsub|numpat pubsub|numsub pubsub|shardchannels pubsub|shardnumsub script|kill \
    function|delete function|flush function|kill function|load function|restore \
    cluster|info cluster|nodes cluster|slots cluster|shards cluster|myid cluster|keyslot cluster|countkeysinslot \
    cluster|getkeysinslot cluster|links cluster|replicas cluster|slaves cluster|help icluster|nodes";
const REFUSED_SPLIT: &str = "icluster|nodes";
const SPLIT: &str = "del unlink exists touch mget mset sunion sinter sdiff sunionstore sinterstore sdiffstore \
    zunionstore zinterstore";
/// Read-only by their flags, but what they say holds for one server only.
const NOT_ON_REPLICAS: &str = "scan hscan sscan zscan object|encoding object|freq object|idletime object|refcount \
    memory|usage touch";
const ON_REPLICAS: &str = "dbsize";
const SCRIPTS: &str = "eval evalsha fcall";

fn among(list: &str, name: &str) -> bool {
    list.split_ascii_whitespace().any(|word| word == name)
}

pub fn acts(config: &Config) -> Vec<Act> {
    let mut out = vec![Act::Refuse; COUNT];
    let cluster = config.mode == Mode::Cluster;
    for cmd in COMMANDS {
        for cmd in std::iter::once(cmd).chain(cmd.subs) {
            let container = cmd.name.split('|').next().unwrap_or("");
            let is = |name: &&str| config.refuse.iter().any(|refused| refused.eq_ignore_ascii_case(name));
            let refused = [cmd.name, container].iter().any(is);
            out[cmd.id as usize] = match () {
                () if refused => Act::Refuse,
                () if !cluster && config.on_replicas.iter().any(|name| name == cmd.name) => Act::Read,
                () if !cluster && !config.readers.is_empty() && among(SCRIPTS, cmd.name) => Act::Script,
                () if cmd.name == "publish" && cluster && config.dispatch_pubsub_to_fixed_shard => Act::Speaker,
                () => act(cmd, config.mode),
            };
        }
    }
    out
}

fn act(cmd: &Cmd, mode: Mode) -> Act {
    let name = cmd.name;
    let cluster = mode == Mode::Cluster;
    if among(REFUSED, name) || among(if cluster { REFUSED_CLUSTER } else { REFUSED_SPLIT }, name) {
        return Act::Refuse;
    }
    if among(SLOW, name) || (cluster && among(SLOW_CLUSTER, name)) {
        return Act::Slow;
    }
    if name.starts_with("cluster|") && cluster {
        return Act::Refuse;
    }
    if cmd.has(BLOCKING) {
        return Act::Block;
    }
    if cluster {
        if among(SPLIT, name) {
            return Act::Split;
        }
        if name == "publish" {
            // Any node would do, but messages of a channel must not overtake each other.
            return Act::Key(1);
        }
        return match cmd.single_key() {
            Some(at) => Act::Key(at as u8),
            None if !cmd.keys.is_empty() => Act::Keys,
            None => Act::Any,
        };
    }
    let read = cmd.has(READONLY) && !cmd.has(WRITE | MAY_REPLICATE) && !among(NOT_ON_REPLICAS, name);
    if read && (!cmd.keys.is_empty() || among(ON_REPLICAS, name)) { Act::Read } else { Act::Master }
}

pub const CROSSSLOT: &[u8] = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n";
pub const NO_KEYS: &[u8] = b"-ERR eval/evalsha numkeys must be bigger than zero in redis cluster mode\r\n";

pub enum Place {
    Slot(u16),
    /// No key: any node, which also says what is wrong if a key is missing.
    Anywhere,
    Many,
}

/// Where the keys of a command are.
pub fn place(cmd: &Cmd, args: &[&[u8]]) -> Place {
    let Some(positions) = cmd.key_positions(args) else { return Place::Anywhere };
    let mut slots = positions.into_iter().map(|at| slot(args[at]));
    let Some(first) = slots.next() else { return Place::Anywhere };
    if slots.all(|s| s == first) { Place::Slot(first) } else { Place::Many }
}

/// The node for a request that has to find its way again; NONE if nobody serves it now.
pub fn again(w: W, request: &[u8]) -> u16 {
    if w.mode.get() == Mode::Split {
        return w.master.get();
    }
    let mut reader = crate::resp::Requests::default();
    let Ok(crate::resp::Parsed::Command(_)) = reader.next(request) else { return NONE };
    let args: Vec<&[u8]> = reader.args().iter().map(|(a, b)| &request[*a as usize..*b as usize]).collect();
    let Some(mut cmd) = w.lookup.borrow().find(args[0]) else { return w.any() };
    if let Some(sub) = args.get(1).and_then(|word| crate::command::subcommand(cmd, word)) {
        cmd = sub;
    }
    match place(cmd, &args) {
        Place::Slot(slot) => w.slots[slot as usize].get(),
        _ => w.any(),
    }
}
