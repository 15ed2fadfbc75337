//! Commands that took long, as their clients saw it: from the arrival of the request to the reply. What servers keep
//! in their own slow logs is less (they do not count what came before) and names the proxy's address.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::client::Client;
use crate::command::Cmd;
use crate::databases::shown;
use crate::resp::{Parsed, Requests};
use crate::world::W;

/// As redis-server cuts them.
const WORDS: usize = 32;
const LENGTH: usize = 128;

#[derive(Serialize)]
pub struct Entry {
    id: u64,
    /// Seconds since 1970, when it was done.
    time: u64,
    duration_us: u64,
    command: Vec<String>,
    client: SocketAddr,
    name: String,
}

#[derive(Default)]
pub struct Slowlog {
    next: Cell<u64>,
    /// The youngest first.
    entries: RefCell<VecDeque<Entry>>,
}

impl Slowlog {
    /// Keeps no more than so many.
    pub fn trim(&self, most: usize) {
        self.entries.borrow_mut().truncate(most);
    }

    pub fn json(&self) -> String {
        serde_json::to_string(&*self.entries.borrow()).unwrap_or_default() + "\n"
    }

    fn add(&self, w: W, entry: Entry) {
        self.entries.borrow_mut().push_front(entry);
        self.trim(w.config.borrow().slowlog.max_len);
    }
}

/// Counts a command that has its reply, and keeps it if it was slow. `request` is called only then.
#[inline]
pub fn done(client: &Client, cmd: &Cmd, us: u64, request: impl FnOnce() -> bytes::Bytes) {
    if client.w.stats.took(cmd, us) {
        note(client, cmd, us, &request());
    }
}

#[cold]
fn note(client: &Client, cmd: &Cmd, us: u64, request: &[u8]) {
    let w = client.w;
    let mut parser = Requests::default();
    let Ok(Parsed::Command(_)) = parser.next(request) else { return };
    let words: Vec<&[u8]> =
        parser.args().iter().map(|(from, to)| shown(w, &request[*from as usize..*to as usize])).collect();
    let id = w.slowlog.next.get();
    w.slowlog.next.set(id + 1);
    let entry = Entry {
        id,
        time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs()),
        duration_us: us,
        command: cut(cmd, &words),
        client: client.addr(),
        name: String::from_utf8_lossy(&client.name.borrow()).into_owned(),
    };
    w.slowlog.add(w, entry);
}

/// The words of a command, no more and no longer than is good to look at; of passwords nothing.
fn cut(cmd: &Cmd, words: &[&[u8]]) -> Vec<String> {
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    if secret(cmd) {
        return vec![text(words[0]), "(redacted)".into()];
    }
    let shown = if words.len() > WORDS { WORDS - 1 } else { words.len() };
    let mut out: Vec<String> = words[..shown]
        .iter()
        .map(|word| match word.get(LENGTH..) {
            Some(rest) if !rest.is_empty() => format!("{}... ({} more bytes)", text(&word[..LENGTH]), rest.len()),
            _ => text(word),
        })
        .collect();
    if words.len() > shown {
        out.push(format!("... ({} more arguments)", words.len() - shown));
    }
    out
}

/// Whether a command's words are for nobody's eyes.
pub fn secret(cmd: &Cmd) -> bool {
    matches!(cmd.name, "auth" | "hello")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::named;

    #[test]
    fn long_commands_are_cut_as_redis_cuts_them_and_passwords_are_not_kept() {
        let long = [b'x'; 130];
        let mut words: Vec<&[u8]> = vec![b"MSET", &long];
        let set = named("mset").unwrap();
        assert_eq!(cut(set, &words)[1], format!("{}... (2 more bytes)", "x".repeat(128)));
        words.resize(40, b"a");
        let shown = cut(set, &words);
        assert_eq!((shown.len(), &shown[31][..]), (32, "... (9 more arguments)"));
        assert_eq!(cut(named("auth").unwrap(), &[b"AUTH", b"secret"]), ["AUTH", "(redacted)"]);
    }
}
