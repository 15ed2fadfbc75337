//! Who is the master and which replicas can serve: asked of every server (ROLE), now and then and when one fails.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::spawn_local;

use crate::cluster::{SILENT, meet, own_question};
use crate::resp::Value;
use crate::world::{NONE, Role, W, add};

/// What one server says of itself.
#[derive(Debug, PartialEq, Clone, Copy)]
pub enum Says {
    /// With the offset of its replication.
    Master(i64),
    /// And whether it is connected to its master, and how much it has of what that sends.
    Replica(bool, i64),
    Nothing,
}

pub fn read(reply: &[u8]) -> Says {
    let Some(Value::List(role)) = Value::parse(reply) else { return Says::Nothing };
    match role.first().and_then(Value::text) {
        Some(b"master") => Says::Master(role.get(1).and_then(Value::int).unwrap_or(0)),
        Some(b"slave") => {
            let connected = role.get(3).and_then(Value::text) == Some(b"connected");
            Says::Replica(connected, role.get(4).and_then(Value::int).unwrap_or(-1))
        }
        _ => Says::Nothing,
    }
}

/// What a server has said when it was last heard.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Before {
    pub role: Role,
    pub offset: i64,
    /// When.
    pub heard: u64,
}

/// The master among them. One that was seen as a replica and goes on from where it was has been promoted, whatever
/// the present one still says of itself. One that only comes back, or begins with nothing, has not.
pub fn choose(now: usize, all: &[Says], before: &[Before]) -> Option<usize> {
    let masters = || {
        all.iter().enumerate().filter_map(|(i, says)| match says {
            Says::Master(offset) => Some((*offset, i)),
            _ => None,
        })
    };
    let promoted = masters().filter(|(offset, i)| {
        before.get(*i).is_some_and(|before| before.role == Role::Replica && *offset >= before.offset)
    });
    let present = || masters().find(|(_, i)| *i == now);
    promoted.max().or_else(present).or_else(|| masters().max()).map(|(_, i)| i)
}

/// What each says, not waiting for a present master that is silent: another one may be in its place before it speaks.
async fn ask(w: W, nodes: &[u16], now: usize) -> Vec<Says> {
    let said: Rc<RefCell<Vec<Option<Says>>>> = Rc::new(RefCell::new(vec![None; nodes.len()]));
    let begun = Instant::now();
    for (i, node) in nodes.iter().enumerate() {
        let (node, said) = (*node, said.clone());
        spawn_local(async move {
            let says = read(&own_question(w, node, &["ROLE"]).await);
            said.borrow_mut()[i] = Some(says);
        });
    }
    loop {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let said = said.borrow();
        let others = said.iter().enumerate().all(|(i, says)| i == now || says.is_some());
        let other = said.iter().enumerate().any(|(i, says)| i != now && matches!(says, Some(Says::Master(_))));
        let silent = begun.elapsed() > SILENT;
        if (others && (silent || said.get(now).is_none_or(Option::is_some))) || (other && silent) {
            return said.iter().map(|says| says.unwrap_or(Says::Nothing)).collect();
        }
    }
}

pub async fn refresh(w: W) -> bool {
    add(&w.count.refreshes, 1);
    let config = w.config();
    let nodes: Vec<u16> = config.servers.iter().map(|server| w.node(server)).collect();
    let now = nodes.iter().position(|n| *n == w.master.get()).unwrap_or(usize::MAX);
    let all = ask(w, &nodes, now).await;
    let before: Vec<Before> = {
        let known = w.nodes.borrow();
        nodes.iter().map(|n| known[*n as usize].before.get()).collect()
    };
    let master = choose(now, &all, &before).map(|i| nodes[i]);
    let mut changed = false;
    if let Some(master) = master {
        if w.master.replace(master) != master {
            changed = true;
            // Offsets under another master say nothing of what this one has written.
            w.nodes.borrow().iter().for_each(|node| node.offset.set(-1));
        }
    }
    for (i, node) in w.nodes.borrow().iter().enumerate() {
        node.weight.set(config.weights.get(&node.addr).copied().unwrap_or(1));
        let says = nodes.iter().position(|n| *n as usize == i).map_or(Says::Nothing, |at| all[at]);
        let before = node.before.get();
        // A master may be busy for a while, and still is the master.
        let patience = 2 * config.times.connect_ms;
        if says == Says::Nothing && w.master.get() as usize == i && w.clock() < before.heard + patience {
            continue;
        }
        let (role, healthy) = match says {
            Says::Master(_) if Some(i as u16) == master => (Role::Master, true),
            Says::Master(_) | Says::Nothing => (Role::Unknown, false),
            Says::Replica(connected, _) => (Role::Replica, connected),
        };
        if let Says::Master(offset) | Says::Replica(_, offset) = says {
            let role = if matches!(says, Says::Master(_)) { Role::Master } else { Role::Replica };
            node.before.set(Before { role, offset, heard: w.clock() });
        }
        changed |= node.healthy.replace(healthy) != healthy;
        changed |= node.role.replace(role) != role;
    }
    if changed {
        w.bump();
    }
    let Some(master) = master else { return w.master.get() != NONE };
    meet(w, master).await;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_master_is_the_present_one_or_one_that_was_promoted() {
        use Says::*;
        let was = |role, offset| Before { role, offset, heard: 0 };
        let (master, replica, unknown) = (Role::Master, Role::Replica, was(Role::Unknown, -1));
        for (now, says, before, want) in [
            // It stays while it says so, and nobody else does.
            (0, [Master(5), Replica(true, 5)], [was(master, 5), was(replica, 5)], Some(0)),
            (0, [Nothing, Replica(false, 5)], [was(master, 5), was(replica, 5)], None),
            // Promoted while it is silent, or still thinks that it is the master, with more writes of its own.
            (0, [Nothing, Master(9)], [was(master, 5), was(replica, 5)], Some(1)),
            (0, [Master(12), Master(9)], [was(master, 8), was(replica, 8)], Some(1)),
            (0, [Replica(true, 9), Master(9)], [was(master, 5), was(replica, 5)], Some(1)),
            // The old one comes back, with more than was ever replicated.
            (1, [Master(12), Master(9)], [was(master, 8), was(master, 8)], Some(1)),
            // A replica that was started anew without its master.
            (0, [Master(12), Master(0)], [was(master, 8), was(replica, 8)], Some(0)),
            // At the beginning: the one that is further.
            (usize::MAX, [Master(3), Master(9)], [unknown; 2], Some(1)),
            (usize::MAX, [Replica(true, 0), Master(0)], [unknown; 2], Some(1)),
            (usize::MAX, [Nothing, Replica(false, -1)], [unknown; 2], None),
        ] {
            assert_eq!(choose(now, &says, &before), want, "{now} {says:?} {before:?}");
        }
    }
}
