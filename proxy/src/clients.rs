//! CLIENT: the clients of this process, and where it is about all of them also those of its siblings.

use std::rc::Rc;

use crate::client::{Client, Mute};
use crate::resp::{self, OK, Value, Write, integer, number};
use crate::siblings;
use crate::slow::{self, Request};
use crate::world::{NONE, W};

pub const BAD_NAME: &[u8] = b"-ERR Client names cannot contain spaces, newlines or special characters.\r\n";
const SYNTAX: &[u8] = b"-ERR syntax error\r\n";
const NO_SUCH: &[u8] = b"-ERR No such client\r\n";

pub fn good_name(name: &[u8]) -> bool {
    name.iter().all(|b| (b'!'..=b'~').contains(b))
}

pub async fn command(c: &Rc<Client>, request: &Request) {
    match request.cmd.name {
        "client|id" => c.emit(&integer(c.id as i64)),
        "client|setname" if !good_name(request.arg(2)) => c.emit(BAD_NAME),
        "client|setname" => {
            *c.name.borrow_mut() = request.arg(2).to_vec();
            c.emit(OK);
        }
        "client|getname" => {
            let mut out = Vec::new();
            if c.name.borrow().is_empty() {
                out.nil(c.proto.get())
            } else {
                out.bulk(&c.name.borrow())
            }
            c.emit(&out);
        }
        "client|setinfo" => {
            let which = match () {
                () if request.is(2, "lib-name") => 0,
                () if request.is(2, "lib-ver") => 1,
                () => {
                    let option = String::from_utf8_lossy(request.arg(2)).into_owned();
                    return c.emit(&resp::error(format!("ERR Unrecognized option '{option}'")));
                }
            };
            c.lib.borrow_mut()[which] = request.arg(3).to_vec();
            c.emit(OK);
        }
        "client|no-evict" | "client|no-touch" => {
            c.emit(if request.is(2, "on") || request.is(2, "off") { OK } else { SYNTAX });
        }
        "client|reply" => {
            if request.is(2, "on") {
                c.mute.set(Mute::Off);
                c.emit(OK);
            } else if request.is(2, "off") {
                c.mute.set(Mute::All);
            } else if request.is(2, "skip") {
                if c.mute.get() == Mute::Off {
                    c.mute.set(Mute::Next);
                }
            } else {
                c.emit(SYNTAX);
            }
        }
        "client|info" => text(c, &line(c)),
        // Whether an account may know of other clients, or end them, is for the servers to say.
        "client|list" => match all_lines(c, &request.words()).await {
            Ok(lines) => text(c, &lines),
            Err(error) => c.emit(&error),
        },
        "client|kill" => {
            let reply = match allowed(c, &["CLIENT", "KILL", "ID", "9223372036854775807"]).await {
                Ok(()) => kill_everywhere(c, &request.words()).await,
                Err(refusal) => refusal,
            };
            c.emit(&reply);
        }
        other => c.emit(&resp::error(format!("ERR {other} is not supported"))),
    }
}

async fn all_lines(c: &Rc<Client>, words: &[&[u8]]) -> Result<String, Vec<u8>> {
    allowed(c, &["CLIENT", "LIST", "TYPE", "master"]).await?;
    let mut lines = list(c.w, words)?;
    let words = [&[&b"CLIENT"[..], b"LIST"], &words[2..]].concat();
    for reply in siblings::ask(c.w, &words).await {
        let own = Value::parse(&reply).and_then(|v| v.text().map(String::from_utf8_lossy));
        lines.push_str(&own.unwrap_or_default());
    }
    Ok(lines)
}

/// Says words that do nothing to a server as this client; what it refuses them with.
async fn allowed(c: &Rc<Client>, words: &[&str]) -> Result<(), Vec<u8>> {
    let node = c.w.any();
    if node == NONE {
        return Err(b"-ERR no server can be asked now\r\n".to_vec());
    }
    let reply = slow::ask(c, node, words).await;
    if reply.starts_with(b"-") { Err(reply.to_vec()) } else { Ok(()) }
}

fn text(c: &Rc<Client>, text: &str) {
    let mut out = Vec::new();
    out.text(text.as_bytes(), c.proto.get());
    c.emit(&out);
}

fn line(c: &Client) -> String {
    let now = c.w.clock();
    let subscribed = c.subscriptions.active();
    let (multi, watching) = match &*c.transaction.borrow() {
        Some(t) => (if t.begun { t.len() as i64 } else { -1 }, t.watching()),
        None => (-1, false),
    };
    let mut flags = String::new();
    for (on, flag) in [(subscribed, 'P'), (multi >= 0, 'x')] {
        if on {
            flags.push(flag);
        }
    }
    let ident = c.ident.borrow();
    let user = ident.user.as_deref().unwrap_or(b"default");
    let [lib, ver] = &*c.lib.borrow();
    let text = String::from_utf8_lossy;
    format!(
        "id={} addr={} laddr={} fd=0 name={} age={} idle={} flags={} db={} sub={} psub={} ssub={} multi={multi} \
         watch={} qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={} tot-mem=0 events=r \
         cmd={} user={} redir=-1 resp={} lib-name={} lib-ver={}\n",
        c.id,
        c.addr(),
        c.laddr,
        text(&c.name.borrow()),
        (now.saturating_sub(c.since)) / 1000,
        now.saturating_sub(c.last.get()) / 1000,
        if flags.is_empty() { "N" } else { &flags },
        c.db.get(),
        c.subscriptions.count("subscribe"),
        c.subscriptions.count("psubscribe"),
        c.subscriptions.count("ssubscribe"),
        i32::from(watching),
        c.backlog(),
        c.last_cmd.get(),
        text(user),
        c.proto.get(),
        text(lib),
        text(ver),
    )
}

fn kind(c: &Client) -> &'static str {
    if c.subscriptions.active() { "pubsub" } else { "normal" }
}

/// What a sibling wants to know or have done on behalf of one of its clients.
pub fn for_sibling(w: W, words: &[&[u8]]) -> Vec<u8> {
    let is = |at: usize, word: &str| words.get(at).is_some_and(|w| w.eq_ignore_ascii_case(word.as_bytes()));
    let client = is(0, "client") && words.len() > 1;
    if is(0, "count") {
        integer(w.clients.borrow().len() as i64)
    } else if client && is(1, "list") {
        list(w, words).map_or_else(
            |error| error,
            |lines| {
                let mut out = Vec::new();
                out.bulk(lines.as_bytes());
                out
            },
        )
    } else if client && is(1, "kill") && words.len() > 2 {
        kill(w, words, None)
    } else {
        SYNTAX.to_vec()
    }
}

/// Clients of all processes at this address.
pub async fn count(w: W) -> usize {
    let others = siblings::sum(w, &["COUNT"]).await;
    w.clients.borrow().len() + usize::try_from(others).unwrap_or(0)
}

/// The lines of CLIENT LIST, without those of siblings.
fn list(w: W, words: &[&[u8]]) -> Result<String, Vec<u8>> {
    let (mut wanted, mut ids) = (None, None);
    let is = |word: &str| words.get(2).is_some_and(|w| w.eq_ignore_ascii_case(word.as_bytes()));
    match words.len() {
        2 => {}
        4 if is("type") => {
            let word = String::from_utf8_lossy(words[3]).to_lowercase();
            if !matches!(word.as_str(), "normal" | "pubsub" | "master" | "replica" | "slave") {
                return Err(resp::error(format!("ERR Unknown client type '{word}'")));
            }
            wanted = Some(word);
        }
        n if n > 3 && is("id") => {
            let all: Option<Vec<i64>> = words[3..].iter().map(|word| number(word)).collect();
            ids = Some(all.ok_or_else(|| b"-ERR Invalid client ID\r\n".to_vec())?);
        }
        _ => return Err(SYNTAX.to_vec()),
    }
    let mut all = w.all_clients();
    all.sort_by_key(|other| other.id);
    all.retain(|other| wanted.as_deref().is_none_or(|kind_wanted| kind(other) == kind_wanted));
    all.retain(|other| ids.as_ref().is_none_or(|ids| ids.contains(&(other.id as i64))));
    Ok(all.iter().map(|other| line(other)).collect())
}

async fn kill_everywhere(c: &Rc<Client>, words: &[&[u8]]) -> Vec<u8> {
    let reply = kill(c.w, words, Some(c));
    let old_form = words.len() == 3;
    if (reply[0] == b'-' && reply != NO_SUCH) || (old_form && reply == OK) {
        return reply;
    }
    // By its name before any renaming.
    let words = [&[&b"CLIENT"[..]], &words[1..]].concat();
    let others = siblings::ask(c.w, &words).await;
    if old_form {
        return if others.iter().any(|other| other[..] == *OK) { OK.to_vec() } else { NO_SUCH.to_vec() };
    }
    let counts = others.iter().chain([&reply.into()]).filter_map(|r| Value::parse(r)?.int()).sum();
    integer(counts)
}

/// The old form names an address and answers OK; the new one has filters and answers how many.
fn kill(w: W, words: &[&[u8]], me: Option<&Rc<Client>>) -> Vec<u8> {
    let own = w.all_clients();
    let is_me = |other: &Rc<Client>| me.is_some_and(|me| Rc::ptr_eq(other, me));
    let end = |other: &Rc<Client>| {
        if is_me(other) { other.leaving.set(true) } else { other.cut() }
    };
    if words.len() == 3 {
        let found = own.iter().find(|other| other.addr().to_string().as_bytes() == words[2]);
        let Some(other) = found else { return NO_SUCH.to_vec() };
        end(other);
        return OK.to_vec();
    }
    if words.len() % 2 == 1 {
        return SYNTAX.to_vec();
    }
    let mut skip_me = true;
    let mut chosen = own;
    for pair in words[2..].chunks(2) {
        let is = |word: &str| pair[0].eq_ignore_ascii_case(word.as_bytes());
        let value = String::from_utf8_lossy(pair[1]).into_owned();
        if is("addr") {
            chosen.retain(|other| other.addr().to_string() == value);
        } else if is("laddr") {
            chosen.retain(|other| other.laddr.to_string() == value);
        } else if is("id") {
            let Some(id) = number(value.as_bytes()).filter(|n| *n > 0) else {
                return b"-ERR client-id should be greater than 0\r\n".to_vec();
            };
            chosen.retain(|other| other.id as i64 == id);
        } else if is("type") {
            chosen.retain(|other| kind(other) == value.to_lowercase());
        } else if is("user") {
            chosen.retain(|other| other.ident.borrow().user.as_deref().unwrap_or(b"default") == value.as_bytes());
        } else if is("skipme") {
            skip_me = !value.eq_ignore_ascii_case("no");
        } else {
            return SYNTAX.to_vec();
        }
    }
    chosen.retain(|other| !(skip_me && is_me(other)));
    chosen.iter().for_each(end);
    integer(chosen.len() as i64)
}
