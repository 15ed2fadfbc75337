//! The protocol: where a request ends and what its arguments are, where a reply ends, and how both are written.
//!
//! Nothing is decoded on the way through: requests and replies travel as the bytes they came as. Both readers can
//! be interrupted at any byte and remember where they were, so no byte is looked at twice however a stream is cut.

use memchr::memchr;

/// A request may have so many arguments, each so long; redis-server's own limits.
pub const MAX_ARGS: i64 = 1024 * 1024;
pub const MAX_BULK: i64 = 512 * 1024 * 1024;
const MAX_LINE: usize = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole request of so many bytes; its arguments are in `Requests::args`.
    Command(usize),
    /// A request typed as a line, of so many bytes.
    Inline(usize, Vec<Vec<u8>>),
    /// So many bytes that mean nothing.
    Nothing(usize),
    /// The request goes on; it has at least so many bytes.
    More(usize),
}

/// Reads one request at the start of a buffer that grows. What it takes every server takes too: a request that a
/// server hangs up on would take all those with it that share the connection.
pub struct Requests {
    /// The longest argument that the servers take.
    pub max_bulk: i64,
    pos: usize,
    left: i64,
    begun: bool,
    args: Vec<(u32, u32)>,
}

impl Default for Requests {
    fn default() -> Self {
        Requests { max_bulk: MAX_BULK, pos: 0, left: 0, begun: false, args: Vec::new() }
    }
}

impl Requests {
    /// Where the arguments of the last request stand in its bytes.
    pub fn args(&self) -> &[(u32, u32)] {
        &self.args
    }

    /// Gives back the memory of a request with very many arguments.
    pub fn relax(&mut self) {
        if self.args.capacity() > 256 {
            self.args = Vec::new();
        }
    }

    /// `buf` begins where the last request ended. Until the request is whole, the same bytes must be shown again.
    pub fn next(&mut self, buf: &[u8]) -> Result<Parsed, String> {
        if !self.begun {
            self.args.clear();
            match buf.first() {
                None => return Ok(Parsed::More(1)),
                Some(b'*') => {}
                Some(_) => return inline(buf),
            }
            let Some((number, end)) = header(buf, 1, "too big mbulk count string")? else {
                return Ok(Parsed::More(buf.len() + 1));
            };
            let count = number.filter(|n| *n <= MAX_ARGS).ok_or("Protocol error: invalid multibulk length")?;
            if count <= 0 {
                return Ok(Parsed::Nothing(end));
            }
            (self.begun, self.left, self.pos) = (true, count, end);
        }
        while self.left > 0 {
            let at = self.pos;
            match buf.get(at) {
                None => return Ok(Parsed::More(at + 1)),
                Some(b'$') => {}
                Some(other) => {
                    let other = other.escape_ascii();
                    return Err(format!("Protocol error: expected '$', got '{other}'"));
                }
            }
            let Some((number, start)) = header(buf, at + 1, "too big bulk count string")? else {
                return Ok(Parsed::More(buf.len() + 1));
            };
            let len =
                number.filter(|n| (0..=self.max_bulk).contains(n)).ok_or("Protocol error: invalid bulk length")?;
            let end = start + len as usize;
            if end + 2 > u32::MAX as usize {
                return Err("Protocol error: too big request".into());
            }
            if buf.len() < end + 2 {
                return Ok(Parsed::More(end + 2));
            }
            self.args.push((start as u32, end as u32));
            self.pos = end + 2;
            self.left -= 1;
        }
        self.begun = false;
        Ok(Parsed::Command(self.pos))
    }
}

/// The number of a header line whose digits begin at `from`, and where the next line begins; None: not all there.
#[inline]
fn header(buf: &[u8], from: usize, too_big: &str) -> Result<Option<(Option<i64>, usize)>, String> {
    let rest = &buf[from..];
    // Short headers are the rule: read the digits in the same loop that looks for the end.
    let mut n: i64 = 0;
    for (i, byte) in rest.iter().enumerate().take(18) {
        match byte {
            b'0'..=b'9' => n = n * 10 + i64::from(byte - b'0'),
            b'\r' if i > 0 => {
                let number = (rest[0] != b'0' || i == 1).then_some(n);
                return Ok((rest.len() > i + 1).then_some((number, from + i + 2)));
            }
            _ => break,
        }
    }
    match memchr(b'\r', &rest[..rest.len().min(MAX_LINE)]) {
        None if rest.len() >= MAX_LINE => Err(format!("Protocol error: {too_big}")),
        None => Ok(None),
        Some(i) if rest.len() > i + 1 => Ok(Some((number(&rest[..i]), from + i + 2))),
        Some(_) => Ok(None),
    }
}

/// A decimal number, written the only way that redis-server takes.
pub fn number(digits: &[u8]) -> Option<i64> {
    match digits.strip_prefix(b"-").unwrap_or(digits) {
        [b'0'] if digits.len() == 1 => Some(0),
        [b'1'..=b'9', ..] => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

fn inline(buf: &[u8]) -> Result<Parsed, String> {
    let Some(end) = memchr(b'\n', &buf[..buf.len().min(MAX_LINE)]) else {
        if buf.len() >= MAX_LINE {
            return Err("Protocol error: too big inline request".into());
        }
        return Ok(Parsed::More(buf.len() + 1));
    };
    let line = buf[..end].strip_suffix(b"\r").unwrap_or(&buf[..end]);
    let words = split_line(line).ok_or("Protocol error: unbalanced quotes in request")?;
    Ok(if words.is_empty() { Parsed::Nothing(end + 1) } else { Parsed::Inline(end + 1, words) })
}

/// Words of a line as a shell would see them: "…" with escapes, '…' without.
fn split_line(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let space = |b: u8| b.is_ascii_whitespace() || b == 0x0b;
    let mut words = Vec::new();
    let mut i = 0;
    loop {
        while i < line.len() && space(line[i]) {
            i += 1;
        }
        // As a string of C ends.
        if i >= line.len() || line[i] == 0 {
            return Some(words);
        }
        let mut word = Vec::new();
        let mut quote = 0u8;
        loop {
            let Some(&byte) = line.get(i) else {
                if quote != 0 {
                    return None;
                }
                break;
            };
            match (quote, byte) {
                (0, b) if space(b) || b == 0 => break,
                (0, b'"' | b'\'') => quote = byte,
                (b'"', b'\\') => {
                    i += 1;
                    let next = *line.get(i)?;
                    let hex = line.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
                    match (next, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
                        (b'x', Some(value)) => {
                            word.push(value);
                            i += 2;
                        }
                        (b'n', _) => word.push(b'\n'),
                        (b'r', _) => word.push(b'\r'),
                        (b't', _) => word.push(b'\t'),
                        (b'b', _) => word.push(8),
                        (b'a', _) => word.push(7),
                        (other, _) => word.push(other),
                    }
                }
                (b'\'', b'\\') if line.get(i + 1) == Some(&b'\'') => {
                    word.push(b'\'');
                    i += 1;
                }
                (q, b) if q == b && q != 0 => {
                    quote = 0;
                    if line.get(i + 1).is_some_and(|b| !space(*b) && *b != 0) {
                        return None;
                    }
                }
                _ => word.push(byte),
            }
            i += 1;
        }
        words.push(word);
    }
}

/// Finds the end of a reply of either version. It eats what it is shown, so it needs no memory but a number or two.
#[derive(Default)]
pub struct Replies {
    /// Elements that the reply still lacks, this one included.
    left: u64,
    /// Bytes of a bulk that are still to come, with its line end.
    skip: u64,
    /// The type of the line that is being read, 0 between lines.
    kind: u8,
    digits: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct NotResp;

impl Replies {
    /// How many bytes of `buf` belong to this reply, and whether it ends there. All of `buf` does if it does not end.
    #[inline]
    pub fn feed(&mut self, buf: &[u8]) -> Result<(usize, bool), NotResp> {
        let mut pos = 0;
        if self.left == 0 {
            self.left = 1;
        }
        loop {
            if self.skip > 0 {
                let take = self.skip.min((buf.len() - pos) as u64);
                self.skip -= take;
                pos += take as usize;
                if self.skip > 0 {
                    return Ok((pos, false));
                }
                self.left -= 1;
            }
            if self.left == 0 && self.kind == 0 {
                return Ok((pos, true));
            }
            if pos == buf.len() {
                return Ok((pos, false));
            }
            if self.kind == 0 {
                self.kind = buf[pos];
                pos += 1;
            }
            let rest = &buf[pos..];
            let numeric = matches!(self.kind, b'$' | b'*' | b'~' | b'>' | b'%' | b'|' | b'=' | b'!');
            if !numeric {
                if !matches!(self.kind, b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') {
                    return Err(NotResp);
                }
                let Some(i) = memchr(b'\n', rest) else {
                    return Ok((buf.len(), false));
                };
                pos += i + 1;
                self.kind = 0;
                self.left -= 1;
                continue;
            }
            let Some(i) = memchr(b'\n', &rest[..rest.len().min(40)]) else {
                if self.digits.len() + rest.len() > 32 {
                    return Err(NotResp);
                }
                self.digits.extend_from_slice(rest);
                return Ok((buf.len(), false));
            };
            pos += i + 1;
            let line = if self.digits.is_empty() {
                &rest[..i]
            } else {
                self.digits.extend_from_slice(&rest[..i]);
                &self.digits
            };
            let n = length(line.strip_suffix(b"\r").unwrap_or(line)).ok_or(NotResp)?;
            self.digits.clear();
            let kind = std::mem::take(&mut self.kind);
            match kind {
                _ if n < 0 => self.left -= 1,
                b'$' | b'=' | b'!' => self.skip = n as u64 + 2,
                b'%' => self.left = self.left - 1 + 2 * n as u64,
                // Attributes come before the element that they belong to.
                b'|' => self.left += 2 * n as u64,
                _ => self.left = self.left - 1 + n as u64,
            }
        }
    }

    /// Bytes of the present bulk that are known to follow.
    pub fn ahead(&self) -> u64 {
        self.skip
    }
}

fn length(line: &[u8]) -> Option<i64> {
    if line.len() == 1 && line[0].is_ascii_digit() {
        return Some(i64::from(line[0] - b'0'));
    }
    number(line).filter(|n| (-1..=1 << 40).contains(n))
}

/// A reply that somebody must understand: those that are merged from several servers, and a few others.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    Nil,
    Int(i64),
    /// Whatever is text: simple, bulk, verbatim, double, big number.
    Text(&'a [u8]),
    Bool(bool),
    Error(&'a [u8]),
    /// Arrays, sets, pushes, and maps as keys and values in turn.
    List(Vec<Value<'a>>),
}

impl<'a> Value<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Value<'a>> {
        value(frame, &mut 0, 0)
    }

    pub fn text(&self) -> Option<&'a [u8]> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    pub fn list(&self) -> Option<&[Value<'a>]> {
        if let Value::List(list) = self { Some(list) } else { None }
    }

    pub fn int(&self) -> Option<i64> {
        match self {
            Value::Int(n) => Some(*n),
            Value::Text(text) => number(text),
            _ => None,
        }
    }
}

fn value<'a>(frame: &'a [u8], pos: &mut usize, depth: usize) -> Option<Value<'a>> {
    if depth > 32 {
        return None;
    }
    let kind = *frame.get(*pos)?;
    let start = *pos + 1;
    let end = start + memchr(b'\r', &frame[start..])?;
    let line = &frame[start..end];
    *pos = end + 2;
    Some(match kind {
        b'+' | b',' | b'(' => Value::Text(line),
        b'-' => Value::Error(line),
        b':' => Value::Int(number(line)?),
        b'_' => Value::Nil,
        b'#' => Value::Bool(line == b"t"),
        b'$' | b'=' | b'!' => {
            let len = number(line)?;
            if len < 0 {
                return Some(Value::Nil);
            }
            let from = *pos;
            let text = frame.get(from..from + len as usize)?;
            *pos = from + len as usize + 2;
            match kind {
                b'=' => Value::Text(text.get(4..)?),
                b'!' => Value::Error(text),
                _ => Value::Text(text),
            }
        }
        b'*' | b'~' | b'>' | b'%' => {
            let count = number(line)?;
            if count < 0 {
                return Some(Value::Nil);
            }
            let count = count as usize * if kind == b'%' { 2 } else { 1 };
            let mut list = Vec::with_capacity(count.min(frame.len()));
            for _ in 0..count {
                list.push(value(frame, pos, depth + 1)?);
            }
            Value::List(list)
        }
        b'|' => {
            let count = 2 * number(line)?;
            for _ in 0..count {
                value(frame, pos, depth + 1)?;
            }
            value(frame, pos, depth + 1)?
        }
        _ => return None,
    })
}

/// Writing, for requests and replies alike.
pub trait Write {
    fn head(&mut self, kind: u8, n: i64);
    fn bulk(&mut self, data: &[u8]);
    /// A text of many lines, as the protocol has it.
    fn text(&mut self, data: &[u8], proto: u8);
    fn nil(&mut self, proto: u8);
    fn command<T: AsRef<[u8]>>(&mut self, args: &[T]);
}

impl Write for Vec<u8> {
    fn head(&mut self, kind: u8, n: i64) {
        self.push(kind);
        self.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
        self.extend_from_slice(b"\r\n");
    }

    fn bulk(&mut self, data: &[u8]) {
        self.head(b'$', data.len() as i64);
        self.extend_from_slice(data);
        self.extend_from_slice(b"\r\n");
    }

    fn text(&mut self, data: &[u8], proto: u8) {
        if proto != 3 {
            return self.bulk(data);
        }
        self.head(b'=', data.len() as i64 + 4);
        self.extend_from_slice(b"txt:");
        self.extend_from_slice(data);
        self.extend_from_slice(b"\r\n");
    }

    fn nil(&mut self, proto: u8) {
        self.extend_from_slice(if proto == 3 { b"_\r\n" } else { b"$-1\r\n" });
    }

    fn command<T: AsRef<[u8]>>(&mut self, args: &[T]) {
        self.head(b'*', args.len() as i64);
        for arg in args {
            self.bulk(arg.as_ref());
        }
    }
}

/// A whole request.
pub fn request<T: AsRef<[u8]>>(args: &[T]) -> Vec<u8> {
    let mut out = Vec::new();
    out.command(args);
    out
}

/// A whole error reply. A line end inside would end it early.
pub fn error(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = vec![b'-'];
    out.extend(text.as_ref().iter().map(|b| if matches!(b, b'\r' | b'\n') { b' ' } else { *b }));
    out.extend_from_slice(b"\r\n");
    out
}

pub fn integer(n: i64) -> Vec<u8> {
    let mut out = Vec::new();
    out.head(b':', n);
    out
}

pub const OK: &[u8] = b"+OK\r\n";
