//! The file that says what to serve. Read at start and at each `reload`; everything but `mode` and `control` may
//! change then.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::command::named;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In front of a Redis Cluster: commands go to the node that has the slot.
    Cluster,
    /// In front of a master and its replicas: writes to the one, reads to the others.
    Split,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PasswordFrom {
    /// The first line, read once at start; a reload keeps it.
    Stdin,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub mode: Mode,
    /// `address:port`, one or more.
    pub listen: Vec<String>,
    /// cluster: nodes to ask for the topology first; split: the master and the replicas, in any order.
    pub servers: Vec<String>,
    /// split: how many reads a replica gets compared with the others. 1 if not said, 0: none.
    #[serde(default)]
    pub weights: HashMap<String, u32>,
    /// split: what a client reads is never older than what it has written (`own_writes`).
    #[serde(default)]
    pub read_own_writes: bool,
    /// The account by which the proxy itself asks for topology and health; it serves no client.
    #[serde(default)]
    pub user: Option<String>,
    #[serde(default)]
    pub password: Option<String>,
    /// Where the password is instead: in no file.
    #[serde(default)]
    pub password_from: Option<PasswordFrom>,
    /// Unix socket for whoever runs the proxy.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// The same of the other processes at this address: CLIENT LIST, CLIENT KILL and MONITOR reach their clients too.
    /// Its own may be among them.
    #[serde(default)]
    pub siblings: Vec<PathBuf>,
    /// Told again in `state`, so that whoever wrote the file knows that it is in force.
    #[serde(default)]
    pub digest: Option<String>,
    /// Commands refused on top of those that proxied instances never have: `"keys"`, `"config|get"`.
    #[serde(default)]
    pub refuse: Vec<String>,
    /// Commands by other names, as the servers have them (`rename-command`): old to new, the old one is unknown.
    #[serde(default)]
    pub rename: HashMap<String, String>,
    /// cluster: PUBLISH and SUBSCRIBE at the shard that has slot 0, and nowhere else.
    #[serde(default)]
    pub dispatch_pubsub_to_fixed_shard: bool,
    /// cluster: so many databases, told apart by what is put before keys. 0: one, as clusters have it. Whoever changes
    /// this sees to it that the cluster is empty.
    #[serde(default)]
    pub multi_db: u32,
    /// Commands that replicas serve, and the master where there is none: `keys`, or none.
    #[serde(default)]
    pub on_replicas: Vec<String>,
    /// split: accounts that may only read, whose scripts replicas run.
    #[serde(default)]
    pub readers: HashSet<String>,
    /// Whether CLIENT LIST, MONITOR and the slow log tell from where clients come. If not, each has an address of
    /// 198.19.0.0/16 there.
    #[serde(default = "yes")]
    pub client_ip: bool,
    /// TLS is spoken with clients, and nothing else.
    #[serde(default)]
    pub tls: Option<Tls>,
    #[serde(default)]
    pub slowlog: Slowlog,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub times: Times,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM: the server's certificate and those that vouch for it.
    pub cert: PathBuf,
    /// PEM.
    pub key: PathBuf,
    /// When TLS is switched on, clients that are in without it are closed.
    #[serde(default = "yes")]
    pub close_others: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Slowlog {
    /// Microseconds between a command's arrival and its reply. 0: all commands, negative: none.
    pub slower_than_us: i64,
    /// Entries kept.
    pub max_len: usize,
}

impl Default for Slowlog {
    fn default() -> Self {
        Slowlog { slower_than_us: 500_000, max_len: 128 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Clients of this process.
    pub maxclients: usize,
    /// Commands of one client that may wait for their replies.
    pub in_flight: usize,
    /// Bytes of replies that a client has not taken, at which no more of its commands are read.
    pub output_pause: usize,
    /// … and at which it is cut off.
    pub output_limit: usize,
    /// Bytes of requests on one connection to a server, at which clients have to wait.
    pub upstream_held: usize,
    /// Connections to a server that the clients of one account share.
    pub connections: usize,
    /// Bytes of an argument, at which a client is told that it is too long. 0: as the servers have it, if the proxy's
    /// account may ask them.
    pub max_argument: u32,
    /// Millions of bits a second from and to clients, both together. 0: no limit.
    pub bandwidth_mbit: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            maxclients: 10_000,
            in_flight: 1024,
            output_pause: 4 << 20,
            output_limit: 256 << 20,
            upstream_held: 16 << 20,
            connections: 1,
            max_argument: 0,
            bandwidth_mbit: 0,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Times {
    /// Seconds without a command after which a client is cut off. 0: never.
    pub idle_s: u64,
    /// A client that takes nothing of a large reply for so long is cut off, because others wait behind it.
    pub stall_ms: u64,
    pub connect_ms: u64,
    /// A server that owes a reply for so long is taken for dead. Not for commands that block.
    pub reply_ms: u64,
    /// How long a command is tried again when servers fail or slots move, before the client gets the error.
    pub retry_ms: u64,
    /// Topology and health are looked at so often, and whenever something fails.
    pub refresh_ms: u64,
    /// On SIGTERM: how long commands under way may take.
    pub stop_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            idle_s: 0,
            stall_ms: 5_000,
            connect_ms: 1_000,
            reply_ms: 15_000,
            retry_ms: 3_000,
            refresh_ms: 2_000,
            stop_ms: 5_000,
        }
    }
}

/// Without these the proxy itself could not speak to a server.
const NEVER_RENAMED: &str = "auth hello select ping info role cluster multi exec discard watch unwatch asking";

impl Config {
    /// Reads the password, if it is not in the file. Whoever was to say it may have ended first: then nothing is served.
    pub fn ask_password(mut self) -> Result<Config, String> {
        if self.password_from == Some(PasswordFrom::Stdin) {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).map_err(|e| format!("standard input: {e}"))?;
            let password = line.strip_suffix('\n').ok_or("standard input ended before the password")?;
            self.password = Some(password.into());
        }
        Ok(self)
    }

    pub fn read(path: &Path) -> Result<Config, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let config: Config = toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.listen.is_empty() || self.servers.is_empty() {
            return Err("listen and servers must not be empty".into());
        }
        for addr in &self.listen {
            addr.parse::<SocketAddr>().map_err(|e| format!("listen: {addr}: {e}"))?;
        }
        for addr in &self.servers {
            let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            port.ok_or_else(|| format!("servers: {addr}: not an address with a port"))?;
        }
        if self.limits.in_flight == 0 || self.limits.connections == 0 {
            return Err("limits must not be 0".into());
        }
        if let Some(name) = self.on_replicas.iter().find(|name| *name != "keys") {
            return Err(format!("on_replicas: {name} cannot be there"));
        }
        if self.multi_db > 10_000 {
            return Err("multi_db must not be more than 10000".into());
        }
        let mut taken = HashSet::new();
        for (old, new) in &self.rename {
            if named(old).is_none() || NEVER_RENAMED.split(' ').any(|name| name == old) {
                return Err(format!("rename: {old} cannot be renamed"));
            }
            let plain = new.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase());
            let free = named(new).is_none() || self.rename.contains_key(new);
            if !plain || (!new.is_empty() && (!free || !taken.insert(new))) {
                return Err(format!("rename: {old} cannot be named {new:?}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "mode = \"split\"\nlisten = [\"127.0.0.1:1\"]\nservers = [\"127.0.0.1:2\"]\n";

    fn fault(more: &str) -> Option<String> {
        let config: Config = toml::from_str(&format!("{LEAST}{more}")).map_err(|e| panic!("{e}")).unwrap();
        config.check().err()
    }

    #[test]
    fn names_that_would_be_ambiguous_or_missing_are_refused() {
        assert_eq!(fault(""), None);
        assert_eq!(fault("[rename]\nkeys = \"mykeys\"\nflushall = \"\"\nflushdb = \"\""), None);
        assert_eq!(fault("[rename]\nkeys = \"scan\"\nscan = \"keys\""), None);
        for wrong in [
            "keys = \"get\"",
            "keys = \"a b\"",
            "keys = \"KEYS2\"",
            "nope = \"x\"",
            "ping = \"x\"",
            "keys = \"x\"\nscan = \"x\"",
        ] {
            assert!(fault(&format!("[rename]\n{wrong}")).is_some(), "{wrong}");
        }
    }

    #[test]
    fn keys_alone_can_be_left_to_replicas() {
        assert_eq!(fault("on_replicas = [\"keys\"]\nreaders = [\"anna\"]"), None);
        assert!(fault("on_replicas = [\"get\"]").is_some());
    }

    #[test]
    fn addresses_without_a_port_are_refused() {
        for text in [LEAST.replace("127.0.0.1:1", "127.0.0.1"), LEAST.replace("127.0.0.1:2", "here")] {
            let config: Config = toml::from_str(&text).unwrap();
            assert!(config.check().is_err());
        }
    }
}
