//! What is known of a command: its flags, and which of its arguments are keys.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::table::{COMMANDS, COUNT};

#[derive(Debug)]
pub struct Cmd {
    pub id: u16,
    /// In lower case; of a subcommand `container|sub`.
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i16,
    pub flags: u32,
    pub keys: &'static [Keys],
    pub subs: &'static [Cmd],
}

/// One way by which keys are found in the arguments: where they begin, and how far they go.
#[derive(Debug)]
pub struct Keys {
    pub begin: Begin,
    pub find: Find,
}

#[derive(Debug)]
pub enum Begin {
    Index(usize),
    /// After this word, looked for from this argument on (from the end if negative).
    Keyword(&'static str, i32),
}

#[derive(Debug)]
pub enum Find {
    /// To `last` from the beginning (negative: from the end; with a limit, only that part of what is left).
    Range { last: i32, step: usize, limit: usize },
    /// A number of keys stands at `at` from the beginning, the first of them at `first`.
    Number { at: usize, first: usize, step: usize },
}

impl Cmd {
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub fn arity_fits(&self, argc: usize) -> bool {
        if self.arity < 0 { argc >= self.arity.unsigned_abs() as usize } else { argc == self.arity as usize }
    }

    /// The position of the key, of commands that always have exactly one.
    pub fn single_key(&self) -> Option<usize> {
        match self.keys {
            [Keys { begin: Begin::Index(at), find: Find::Range { last: 0, .. } }] if self.name != "sort" => Some(*at),
            _ => None,
        }
    }

    /// Positions of the keys. None: the arguments contradict themselves (the server says how).
    pub fn key_positions(&self, args: &[&[u8]]) -> Option<Vec<usize>> {
        let mut out = Vec::new();
        for keys in self.keys {
            let begin = match keys.begin {
                Begin::Index(at) => at,
                Begin::Keyword(word, from) => {
                    let is = |arg: &&[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
                    let found = if from >= 0 {
                        args.iter().enumerate().skip(from as usize).find(|(_, a)| is(a))
                    } else {
                        let end = args.len().saturating_sub(from.unsigned_abs() as usize - 1);
                        args.iter().enumerate().take(end).skip(1).rev().find(|(_, a)| is(a))
                    };
                    match found {
                        Some((at, _)) => at + 1,
                        None => continue,
                    }
                }
            };
            match keys.find {
                Find::Range { last, step, limit } => {
                    let end = if last >= 0 {
                        begin + last as usize
                    } else {
                        let end = args.len().checked_sub(last.unsigned_abs() as usize)?;
                        if limit > 1 { begin + (end + 1).checked_sub(begin)? / limit - 1 } else { end }
                    };
                    if begin >= args.len() || end >= args.len() {
                        return None;
                    }
                    out.extend((begin..=end).step_by(step));
                }
                Find::Number { at, first, step } => {
                    let count = crate::resp::number(args.get(begin + at)?)?;
                    let count = usize::try_from(count).ok().filter(|n| *n <= args.len())?;
                    let end = begin + first + count * step;
                    if end > args.len() {
                        return None;
                    }
                    out.extend((begin + first..end).step_by(step));
                }
            }
        }
        if self.name == "sort" {
            let mut at = 2;
            while at + 1 < args.len() {
                if args[at].eq_ignore_ascii_case(b"store") {
                    out.truncate(1);
                    out.push(at + 1);
                    at += 1;
                }
                at += 1;
            }
        }
        Some(out)
    }
}

const SIZE: usize = 2048;

/// Finds commands by name. One probe as a rule.
pub struct Lookup {
    places: Vec<u16>,
    names: Vec<Cow<'static, str>>,
}

fn hash(name: &[u8]) -> usize {
    let mut h = name.len() as u32;
    for byte in name {
        h = (h ^ u32::from(byte | 0x20)).wrapping_mul(0x0100_0193).rotate_left(5);
    }
    (h ^ h >> 15) as usize % SIZE
}

impl Lookup {
    /// With other names for some commands; a command whose new name is empty is not found at all.
    pub fn new(renamed: &HashMap<String, String>) -> Lookup {
        let names: Vec<Cow<str>> = COMMANDS
            .iter()
            .map(|cmd| renamed.get(cmd.name).map_or(Cow::Borrowed(cmd.name), |new| Cow::Owned(new.clone())))
            .collect();
        let mut places = vec![u16::MAX; SIZE];
        for (i, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            let mut at = hash(name.as_bytes());
            while places[at] != u16::MAX {
                at = (at + 1) % SIZE;
            }
            places[at] = i as u16;
        }
        Lookup { places, names }
    }

    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<&'static Cmd> {
        let mut at = hash(name);
        loop {
            let found = self.places[at] as usize;
            if self.names.get(found)?.as_bytes().eq_ignore_ascii_case(name) {
                return COMMANDS.get(found);
            }
            at = (at + 1) % SIZE;
        }
    }

    /// What clients and servers call the command of this name.
    pub fn name(&self, name: &[u8]) -> Option<&str> {
        let at = COMMANDS.iter().position(|cmd| cmd.name.as_bytes().eq_ignore_ascii_case(name))?;
        Some(&self.names[at])
    }
}

/// The command that has this name before any renaming.
pub fn named(name: &str) -> Option<&'static Cmd> {
    COMMANDS.iter().find(|cmd| cmd.name == name)
}

/// The subcommand that `word` names.
pub fn subcommand(cmd: &'static Cmd, word: &[u8]) -> Option<&'static Cmd> {
    let prefix = cmd.name.len() + 1;
    cmd.subs.iter().find(|sub| sub.name.as_bytes()[prefix..].eq_ignore_ascii_case(word))
}

/// Names by id.
pub fn names() -> Vec<&'static str> {
    let mut out = vec![""; COUNT];
    for cmd in COMMANDS {
        out[cmd.id as usize] = cmd.name;
        for sub in cmd.subs {
            out[sub.id as usize] = sub.name;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(line: &str) -> Vec<String> {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut cmd = Lookup::new(&HashMap::new()).find(args[0]).unwrap();
        if !cmd.subs.is_empty() {
            cmd = subcommand(cmd, args[1]).unwrap();
        }
        let found = cmd.key_positions(&args).unwrap_or_default();
        found.into_iter().map(|i| String::from_utf8(args[i].to_vec()).unwrap()).collect()
    }

    #[test]
    fn keys_are_found_wherever_they_stand() {
        for (line, want) in [
            ("get a", "a"),
            ("MSET a 1 b 2", "a b"),
            ("del a b c", "a b c"),
            ("EVAL x 2 a b c", "a b"),
            ("ZUNIONSTORE d 2 a b WEIGHTS 1 2", "d a b"),
            ("XREAD COUNT 1 STREAMS a b 0 0", "a b"),
            ("XREADGROUP GROUP streams c STREAMS a >", "a"),
            ("sort a BY x STORE d", "a d"),
            ("GEORADIUS g 1 1 1 km STORE d", "g d"),
            ("BLPOP a b 0", "a b"),
            ("OBJECT ENCODING k", "k"),
            ("XGROUP CREATE s g 0", "s"),
            ("BITOP AND d a b", "d a b"),
            ("BLMPOP 0 2 a b LEFT", "a b"),
            ("MEMORY USAGE k", "k"),
            ("PING", ""),
            ("EVAL x 9 a", ""),
        ] {
            assert_eq!(keys(line).join(" "), want, "{line}");
        }
    }

    #[test]
    fn every_command_is_found_by_its_name_and_nothing_else_is() {
        let lookup = Lookup::new(&HashMap::new());
        for cmd in COMMANDS {
            assert_eq!(lookup.find(cmd.name.to_uppercase().as_bytes()).unwrap().id, cmd.id);
        }
        assert!(lookup.find(b"nope").is_none());
        assert!(lookup.find(b"").is_none());
    }

    #[test]
    fn a_renamed_command_is_found_by_its_new_name_only() {
        let names = [("keys", "mykeys"), ("flushall", ""), ("scan", "keys")];
        let lookup = Lookup::new(&names.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect());
        assert_eq!(lookup.find(b"MyKeys").unwrap().name, "keys");
        assert_eq!(lookup.find(b"keys").unwrap().name, "scan");
        assert!(lookup.find(b"scan").is_none() && lookup.find(b"flushall").is_none() && lookup.find(b"").is_none());
        assert_eq!((lookup.name(b"KEYS"), lookup.name(b"get")), (Some("mykeys"), Some("get")));
    }
}
