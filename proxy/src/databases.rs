//! Several databases in front of a cluster, which has but one: keys of a database other than 0 are stored under a
//! prefix (byte 1, its number, byte 1) that no client sees. The prefix has no brace in it, so a key's own hash tag says
//! as ever which slot it has; without one, the prefix counts too.
//!
//! Requests are rewritten before anything else is done with them, so that whatever comes then (slots, redirections,
//! transactions, scripts' keys) knows only the stored keys; replies are, where they name keys, on their last way to
//! the client. A client of database 0 cannot say a key that begins like a prefix.

use std::borrow::Cow;

use bytes::Bytes;

use crate::client::Client;
use crate::command::Cmd;
use crate::merge;
use crate::resp::{self, Parsed, Requests, Write};
use crate::route::Act;
use crate::slow::Request;
use crate::world::W;

/// How keys of a database begin, and of 0: not at all.
pub fn prefix(db: u32) -> Vec<u8> {
    if db == 0 { Vec::new() } else { format!("\x01{db}\x01").into_bytes() }
}

/// The database of a stored key, and the key as its clients know it.
pub fn split(stored: &[u8]) -> (u32, &[u8]) {
    let plain = (0, stored);
    let Some(rest) = stored.strip_prefix(b"\x01") else { return plain };
    let Some(end) = rest.iter().take(6).position(|b| *b == 1) else { return plain };
    let digits = &rest[..end];
    let number = std::str::from_utf8(digits).ok().filter(|_| digits.iter().all(u8::is_ascii_digit));
    match number.and_then(|n| n.parse().ok()) {
        Some(db) if db > 0 && digits[0] != b'0' => (db, &rest[end + 1..]),
        _ => plain,
    }
}

/// A key, or any other word, as it is good to look at.
pub fn shown(w: W, word: &[u8]) -> &[u8] {
    if w.databases.get() == 0 { word } else { split(word).1 }
}

/// Where messages go is no key, though the command table says so.
fn keyless(cmd: &Cmd) -> bool {
    cmd.keys.is_empty() || matches!(cmd.name, "spublish" | "ssubscribe" | "sunsubscribe")
}

/// The request as it goes to servers; None: as it is. An error is for the client.
pub fn rewritten(client: &Client, cmd: &Cmd, raw: &[u8], args: &[(u32, u32)]) -> Result<Option<Bytes>, Vec<u8>> {
    let refused = client.w.acts.borrow()[cmd.id as usize] == Act::Refuse;
    if keyless(cmd) || refused {
        return Ok(None);
    }
    let words: Vec<&[u8]> = args.iter().map(|(from, to)| &raw[*from as usize..*to as usize]).collect();
    if cmd.name == "copy" && words.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"db")) {
        return Err(resp::error("ERR COPY to another database is not supported by this proxy"));
    }
    // Who contradicts himself is told so by the server.
    let Some(positions) = cmd.key_positions(&words) else { return Ok(None) };
    if positions.iter().any(|at| split(words[*at]).0 != 0) {
        return Err(resp::error("ERR keys that begin like this are those of other databases"));
    }
    let prefix = prefix(client.db.get());
    if prefix.is_empty() {
        return Ok(None);
    }
    let mut words: Vec<Cow<[u8]>> = words.into_iter().map(Cow::Borrowed).collect();
    for at in positions {
        words[at] = Cow::Owned([&prefix[..], &words[at]].concat());
    }
    Ok(Some(resp::request(&words).into()))
}

/// Where keys stand in a command's reply.
enum Named {
    Nowhere,
    /// The first thing in it.
    First,
    /// One for each stream.
    Streams,
    /// Wherever a script may have put one.
    Anywhere,
}

fn named(cmd: &Cmd) -> Named {
    match cmd.name {
        "blpop" | "brpop" | "blmpop" | "lmpop" | "bzpopmin" | "bzpopmax" | "bzmpop" | "zmpop" => Named::First,
        "xread" | "xreadgroup" => Named::Streams,
        "eval" | "eval_ro" | "evalsha" | "evalsha_ro" | "fcall" | "fcall_ro" => Named::Anywhere,
        _ => Named::Nowhere,
    }
}

/// Whether the reply to a command must be seen whole before it is passed on.
pub fn answers_with_keys(client: &Client, cmd: &Cmd) -> bool {
    client.prefixed() && !matches!(named(cmd), Named::Nowhere)
}

/// The reply as the client is to see it.
pub fn reply(client: &Client, request: &Request, reply: Bytes) -> Bytes {
    if !answers_with_keys(client, request.cmd) {
        return reply;
    }
    translated(client.db.get(), request.cmd, &request.words(), &reply).map_or(reply, Bytes::from)
}

/// The reply to EXEC, of these commands.
pub fn executed(client: &Client, queued: &[Bytes], reply: Bytes) -> Bytes {
    if !client.prefixed() {
        return reply;
    }
    let Some(parts) = merge::elements(&reply).filter(|parts| parts.len() == queued.len()) else { return reply };
    let mut out = Vec::with_capacity(reply.len());
    out.head(b'*', parts.len() as i64);
    for (request, part) in queued.iter().zip(parts) {
        let mut parser = Requests::default();
        let known = matches!(parser.next(request), Ok(Parsed::Command(_)));
        let words: Vec<&[u8]> = parser.args().iter().map(|(from, to)| &request[*from as usize..*to as usize]).collect();
        let cmd = words.first().filter(|_| known).and_then(|name| client.w.lookup.borrow().find(name));
        match cmd.and_then(|cmd| translated(client.db.get(), cmd, &words, part)) {
            Some(part) => out.extend_from_slice(&part),
            None => out.extend_from_slice(part),
        }
    }
    out.into()
}

fn translated(db: u32, cmd: &Cmd, words: &[&[u8]], reply: &[u8]) -> Option<Vec<u8>> {
    let prefix = prefix(db);
    let map = reply.first() == Some(&b'%');
    let is_key = |depth: usize, at: usize, text: &[u8]| match named(cmd) {
        Named::Nowhere => false,
        Named::First => depth == 1 && at == 0,
        Named::Streams if map => depth == 1 && at % 2 == 0,
        Named::Streams => depth == 2 && at == 0,
        Named::Anywhere => words.contains(&text),
    };
    let mut out = Vec::with_capacity(reply.len());
    let strip = |depth: usize, at: usize, text: &[u8]| {
        if is_key(depth, at, text) { text.strip_prefix(&prefix[..]).map(<[u8]>::len) } else { None }
    };
    copy(reply, &mut 0, &mut out, (0, 0), &strip)?;
    Some(out)
}

/// Copies one element; of texts for which `strip` says so, only the last bytes.
fn copy(
    frame: &[u8],
    pos: &mut usize,
    out: &mut Vec<u8>,
    (depth, at): (usize, usize),
    strip: &impl Fn(usize, usize, &[u8]) -> Option<usize>,
) -> Option<()> {
    let start = *pos;
    let end = start + memchr::memchr(b'\r', &frame[start..])?;
    *pos = end + 2;
    let count = || resp::number(&frame[start + 1..end]);
    match frame[start] {
        b'$' | b'=' | b'!' if count()? >= 0 => {
            let text = frame.get(*pos..*pos + count()? as usize)?;
            *pos += text.len() + 2;
            match strip(depth, at, text) {
                Some(len) => out.bulk(&text[text.len() - len..]),
                None => out.extend_from_slice(&frame[start..*pos]),
            }
        }
        kind @ (b'+' | b'-') => {
            let text = &frame[start + 1..end];
            let len = strip(depth, at, text).unwrap_or(text.len());
            out.push(kind);
            out.extend_from_slice(&text[text.len() - len..]);
            out.extend_from_slice(b"\r\n");
        }
        kind @ (b'*' | b'~' | b'%' | b'>') => {
            out.extend_from_slice(&frame[start..*pos]);
            let count = count()?.max(0) as usize * if kind == b'%' { 2 } else { 1 };
            for at in 0..count {
                copy(frame, pos, out, (depth + 1, at), strip)?;
            }
        }
        _ => out.extend_from_slice(&frame[start..*pos]),
    }
    Some(())
}

/// The keys of a database in a list of stored ones, as its clients know them.
pub fn own(db: u32, list: &[u8]) -> Option<Vec<u8>> {
    let Some(resp::Value::List(keys)) = resp::Value::parse(list) else { return None };
    let keys = keys.iter().filter_map(|key| key.text().map(split));
    let own: Vec<&[u8]> = keys.filter(|(of, _)| *of == db).map(|(_, key)| key).collect();
    let mut out = Vec::with_capacity(list.len());
    out.head(b'*', own.len() as i64);
    own.iter().for_each(|key| out.bulk(key));
    Some(out)
}

/// A pattern for the stored keys of a database.
pub fn pattern(db: u32, pattern: &[u8]) -> Vec<u8> {
    [&prefix(db)[..], pattern].concat()
}

/// SCAN's words, for the keys of a database.
pub fn scanned(db: u32, words: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
    let given = words.iter().skip(2).step_by(2).rposition(|word| word.eq_ignore_ascii_case(b"match"));
    match given.map(|at| 2 + 2 * at + 1).filter(|at| *at < out.len()) {
        Some(at) => out[at] = pattern(db, &out[at]),
        None if db > 0 => out.extend([b"MATCH".to_vec(), pattern(db, b"*")]),
        None => {}
    }
    out
}

/// Any reply without prefixes, wherever they stand: of slow logs, whose words may be keys of all databases.
pub fn without(reply: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(reply.len());
    let strip = |_: usize, _: usize, text: &[u8]| Some(split(text)).filter(|(db, _)| *db > 0).map(|(_, key)| key.len());
    copy(reply, &mut 0, &mut out, (0, 0), &strip)?;
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;
    use crate::slot::slot;

    #[test]
    fn a_stored_key_says_its_database_and_its_tag_its_slot() {
        for (db, key) in [(1, &b"a"[..]), (255, b""), (7, b"\x01x"), (12, b"{t}a")] {
            let stored = pattern(db, key);
            assert_eq!(split(&stored), (db, key));
        }
        for plain in [
            &b"a"[..],
            b"",
            b"\x01",
            b"\x0112",
            b"\x01a\x01b",
            b"\x010\x01b",
            b"\x01\x01",
            b"\x0101\x01a",
            b"\x011234567\x01a",
        ] {
            assert_eq!(split(plain), (0, plain), "{}", plain.escape_ascii());
        }
        assert_eq!(slot(&pattern(3, b"{user}x")), slot(b"{user}y"));
    }

    #[test]
    fn keys_are_stripped_where_replies_name_them_and_nowhere_else() {
        let key = "\x0131\x01k";
        let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
        let (k, own) = (bulk(key), bulk("k"));
        for (name, reply, want) in [
            ("blpop", format!("*2\r\n{k}{k}"), format!("*2\r\n{own}{k}")),
            ("blpop", "*-1\r\n".into(), "*-1\r\n".into()),
            ("lmpop", format!("*2\r\n{k}*1\r\n{k}"), format!("*2\r\n{own}*1\r\n{k}")),
            ("bzpopmin", format!("*3\r\n{k}{k},1.5\r\n"), format!("*3\r\n{own}{k},1.5\r\n")),
            (
                "xread",
                format!("*1\r\n*2\r\n{k}*1\r\n*2\r\n{k}*2\r\n{k}{k}"),
                format!("*1\r\n*2\r\n{own}*1\r\n*2\r\n{k}*2\r\n{k}{k}"),
            ),
            ("xread", format!("%1\r\n{k}*1\r\n*2\r\n{k}_\r\n"), format!("%1\r\n{own}*1\r\n*2\r\n{k}_\r\n")),
            (
                "eval",
                format!("*2\r\n*1\r\n{k}{}", bulk("\x0131\x01x")),
                format!("*2\r\n*1\r\n{own}{}", bulk("\x0131\x01x")),
            ),
            ("eval", format!("+{key}\r\n"), "+k\r\n".into()),
            ("eval", "-ERR no\r\n".into(), "-ERR no\r\n".into()),
            ("get", k.clone(), k.clone()),
        ] {
            let cmd = command::named(name).unwrap();
            let out = translated(31, cmd, &[name.as_bytes(), key.as_bytes()], reply.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&out), want, "{name}");
        }
    }
}
