//! The protocol once more, slowly and plainly: what the readers of the proxy are compared with. Both look at a whole
//! stream at once.
#![allow(dead_code)]

/// As redis-server reads a number: one way to write each.
fn integer(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let number: i64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

const LINE: usize = 64 * 1024;

/// The header line at `at`, without its first byte, and where the next begins. Err: it will never end.
fn line(stream: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, ()> {
    let rest = &stream[at + 1..];
    match rest.iter().take(LINE).position(|b| *b == b'\r') {
        Some(end) if end + 1 < rest.len() => Ok(Some((&rest[..end], at + 1 + end + 2))),
        Some(_) => Ok(None),
        None if rest.len() >= LINE => Err(()),
        None => Ok(None),
    }
}

/// The commands of a stream, and how it ends: whether in an error, else how many bytes are left over.
pub fn requests(stream: &[u8]) -> (Vec<Vec<Vec<u8>>>, Result<usize, ()>) {
    let (mut commands, mut at) = (Vec::new(), 0);
    loop {
        match request(stream, at) {
            Ok(Some((words, next))) => {
                if !words.is_empty() {
                    commands.push(words);
                }
                at = next;
            }
            Ok(None) => return (commands, Ok(stream.len() - at)),
            Err(()) => return (commands, Err(())),
        }
    }
}

type Request = Option<(Vec<Vec<u8>>, usize)>;

fn request(stream: &[u8], at: usize) -> Result<Request, ()> {
    let Some(first) = stream.get(at) else { return Ok(None) };
    if *first != b'*' {
        let rest = &stream[at..];
        let Some(end) = rest.iter().take(LINE).position(|b| *b == b'\n') else {
            return if rest.len() >= LINE { Err(()) } else { Ok(None) };
        };
        let text = if end > 0 && rest[end - 1] == b'\r' { &rest[..end - 1] } else { &rest[..end] };
        return Ok(Some((words(text).ok_or(())?, at + end + 1)));
    }
    let Some((digits, mut at)) = line(stream, at)? else { return Ok(None) };
    let count = integer(digits).filter(|n| *n <= 1 << 20).ok_or(())?;
    let mut out = Vec::new();
    for _ in 0..count.max(0) {
        match stream.get(at) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(_) => return Err(()),
        }
        let Some((digits, from)) = line(stream, at)? else { return Ok(None) };
        let len = integer(digits).filter(|n| (0..=512 << 20).contains(n)).ok_or(())? as usize;
        let Some(word) = stream.get(from..from + len) else { return Ok(None) };
        if stream.len() < from + len + 2 {
            return Ok(None);
        }
        out.push(word.to_vec());
        at = from + len + 2;
    }
    Ok(Some((out, at)))
}

/// A line as a shell splits it. A NUL ends it.
fn words(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let space = |b: u8| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
    let text: Vec<u8> = text.to_vec();
    let at = |i: usize| text.get(i).copied();
    let hex = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
    let (mut out, mut i) = (Vec::new(), 0);
    loop {
        while at(i).is_some_and(space) {
            i += 1;
        }
        if matches!(at(i), None | Some(0)) {
            return Some(out);
        }
        let mut word = Vec::new();
        let mut quote = None;
        loop {
            let here = at(i);
            if let Some(open) = quote {
                match here {
                    None => return None,
                    Some(b'\\') if open == b'"' => {
                        match (at(i + 1)?, hex(at(i + 2)), hex(at(i + 3))) {
                            (b'x', Some(high), Some(low)) => {
                                word.push((high * 16 + low) as u8);
                                i += 4;
                                continue;
                            }
                            (b'n', ..) => word.push(b'\n'),
                            (b'r', ..) => word.push(b'\r'),
                            (b't', ..) => word.push(b'\t'),
                            (b'b', ..) => word.push(8),
                            (b'a', ..) => word.push(7),
                            (other, ..) => word.push(other),
                        }
                        i += 2;
                    }
                    Some(b'\\') if at(i + 1) == Some(b'\'') => {
                        word.push(b'\'');
                        i += 2;
                    }
                    Some(b) if b == open => {
                        if at(i + 1).is_some_and(|b| !space(b) && b != 0) {
                            return None;
                        }
                        quote = None;
                        i += 1;
                    }
                    Some(b) => {
                        word.push(b);
                        i += 1;
                    }
                }
                continue;
            }
            match here {
                None | Some(0) => break,
                Some(b) if space(b) => break,
                Some(b @ (b'"' | b'\'')) => quote = Some(b),
                Some(b) => word.push(b),
            }
            i += 1;
        }
        out.push(word);
    }
}

/// Where the reply at `at` ends. Ok(None): it goes on. Err: it is none.
pub fn reply(stream: &[u8], at: usize) -> Result<Option<usize>, ()> {
    let Some(kind) = stream.get(at) else { return Ok(None) };
    if !b"+-:_#,($*~>%|=!".contains(kind) {
        return Err(());
    }
    let rest = &stream[at + 1..];
    let end = rest.iter().position(|b| *b == b'\n');
    if !b"$*~>%|=!".contains(kind) {
        return Ok(end.map(|end| at + 1 + end + 1));
    }
    let Some(end) = end.filter(|end| *end <= 40) else { return if rest.len() > 32 { Err(()) } else { Ok(None) } };
    let text = &rest[..end];
    let number = integer(text.strip_suffix(b"\r").unwrap_or(text)).filter(|n| (-1..=1 << 40).contains(n)).ok_or(())?;
    let mut next = at + 1 + end + 1;
    let count = match (kind, number) {
        (b'|', -1) | (_, -1) => return Ok(Some(next)),
        (b'$' | b'=' | b'!', _) => {
            let end = next + number as usize + 2;
            return Ok((end <= stream.len()).then_some(end));
        }
        (b'%', _) => 2 * number,
        (b'|', _) => 2 * number + 1,
        _ => number,
    };
    for _ in 0..count {
        match reply(stream, next)? {
            Some(end) => next = end,
            None => return Ok(None),
        }
    }
    Ok(Some(next))
}
