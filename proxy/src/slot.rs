//! Which of the 16384 slots of a Redis Cluster a key belongs to.

pub const SLOTS: usize = 16384;

const TABLE: [u16; 256] = table();

const fn table() -> [u16; 256] {
    let mut out = [0u16; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = (i as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 { (crc << 1) ^ 0x1021 } else { crc << 1 };
            bit += 1;
        }
        out[i] = crc;
        i += 1;
    }
    out
}

pub fn crc16(data: &[u8]) -> u16 {
    data.iter().fold(0, |crc, byte| (crc << 8) ^ TABLE[((crc >> 8) as u8 ^ byte) as usize])
}

/// The slot of a key: of its hash tag, the first non-empty `{…}`, if it has one.
pub fn slot(key: &[u8]) -> u16 {
    let tag = match memchr::memchr(b'{', key) {
        None => key,
        Some(open) => match memchr::memchr(b'}', &key[open + 1..]) {
            Some(len) if len > 0 => &key[open + 1..open + 1 + len],
            _ => key,
        },
    };
    crc16(tag) & (SLOTS as u16 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        for (key, want) in [("foo", 12182), ("123456789", 0x31C3), ("{user1000}.following", 3443), ("", 0)] {
            assert_eq!(slot(key.as_bytes()), want, "{key}");
        }
        assert_eq!(slot(b"foo{}{bar}"), crc16(b"foo{}{bar}") & 16383);
        assert_eq!(slot(b"foo{{bar}}zap"), crc16(b"{bar") & 16383);
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        assert_eq!(slot(b"foo{bar"), crc16(b"foo{bar") & 16383);
    }
}
