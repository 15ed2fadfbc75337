//! split, `read_own_writes`: what a client reads is never older than what it has written.
//!
//! After a write its reads go to the master, until the replica that would serve them is known to have at least as
//! much of the replication stream as the master had at some moment after the write was answered. Both are asked of
//! the servers (ROLE), and only while somebody waits to know.

use std::cell::Cell;
use std::time::Duration;

use crate::client::Client;
use crate::cluster::own_question;
use crate::command::Cmd;
use crate::fanout::together;
use crate::split::{Says, read};
use crate::table::{MAY_REPLICATE, WRITE};
use crate::world::{NONE, Role, W};

/// The servers are asked so often …
const PAUSE: Duration = Duration::from_millis(5);
/// … and so long after the last read that was sent to the master.
const INTEREST_MS: u64 = 500;

/// How far a client's last write is from being everywhere.
#[derive(Clone, Copy, Default)]
pub enum Written {
    #[default]
    Nothing,
    /// It is over when this reply is there.
    Open(u64),
    Answered,
    /// The master's offset is in the answer to this question, which was put after the write.
    Asked(u64),
    /// A replica of this master with this offset has it.
    At(i64, u16),
}

/// What is known of the servers' offsets.
#[derive(Default)]
pub struct Offsets {
    /// Questions put to the master, and the last of them that it answered.
    put: Cell<u64>,
    answered: Cell<u64>,
    /// Its offset then, and who it was.
    offset: Cell<i64>,
    master: Cell<u16>,
    wanted: Cell<u64>,
    asking: Cell<bool>,
}

/// Notes a command if it may write. `reply`: the number of its reply; None: nothing else is done before it is over.
#[inline]
pub fn note(c: &Client, cmd: &Cmd, reply: Option<u64>) {
    if c.w.read_own_writes.get() && (cmd.has(WRITE | MAY_REPLICATE) || cmd.name == "exec") {
        c.written.set(reply.map_or(Written::Answered, Written::Open));
    }
}

/// Whether this replica may lack something that the client has written.
pub fn may_lack(c: &Client, replica: u16) -> bool {
    let (w, offsets) = (c.w, &c.w.offsets);
    loop {
        let next = match c.written.get() {
            Written::Nothing => return false,
            Written::Open(reply) if c.is_open(reply) => return true,
            Written::Open(_) | Written::Answered => Written::Asked(offsets.put.get() + 1),
            Written::Asked(question)
                if offsets.answered.get() >= question && offsets.master.get() == w.master.get() =>
            {
                Written::At(offsets.offset.get(), offsets.master.get())
            }
            Written::Asked(_) => break,
            Written::At(_, master) if master != w.master.get() => Written::Answered,
            Written::At(offset, _) => {
                let nodes = w.nodes.borrow();
                let behind = |node: &crate::world::Node| node.offset.get() < offset;
                if nodes.get(replica as usize).is_some_and(|node| behind(node)) {
                    break;
                }
                if !nodes.iter().any(|node| node.role.get() == Role::Replica && behind(node)) {
                    c.written.set(Written::Nothing);
                }
                return false;
            }
        };
        c.written.set(next);
    }
    offsets.wanted.set(w.clock());
    if !offsets.asking.replace(true) {
        tokio::task::spawn_local(ask(w));
    }
    true
}

async fn ask(w: W) {
    let offsets = &w.offsets;
    while w.clock() - offsets.wanted.get() < INTEREST_MS {
        let question = offsets.put.get() + 1;
        offsets.put.set(question);
        let master = w.master.get();
        if master != NONE {
            if let Says::Master(offset) = read(&own_question(w, master, &["ROLE"]).await) {
                offsets.offset.set(offset);
                offsets.master.set(master);
                offsets.answered.set(question);
            }
        }
        let is_replica = |n: &u16| w.nodes.borrow()[*n as usize].role.get() == Role::Replica;
        let replicas: Vec<u16> = (0..w.nodes.borrow().len() as u16).filter(is_replica).collect();
        let said = together(replicas.iter().map(|node| own_question(w, *node, &["ROLE"])).collect()).await;
        for (node, reply) in replicas.iter().zip(&said) {
            // Where it had no link it says nothing of how far it is.
            let offset = if let Says::Replica(true, offset) = read(reply) { offset } else { -1 };
            w.nodes.borrow()[*node as usize].offset.set(offset);
        }
        tokio::time::sleep(PAUSE).await;
    }
    offsets.asking.set(false);
}
