//! Base64 with padding (RFC 4648, section 4), strict: one text for each value.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends the base64 of `bytes`.
pub fn encode(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0, |bits, &byte| bits << 8 | usize::from(byte)) << (8 * (3 - group.len()));
        for i in 0..4 {
            out.push(if i <= group.len() { ALPHABET[bits >> (18 - 6 * i) & 63] } else { b'=' });
        }
    }
}

/// Returns the bytes that `text` stands for, or `None` if it is not what [`encode`] writes.
pub fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.chunks(4) {
        let digits = group.strip_suffix(b"==").or_else(|| group.strip_suffix(b"=")).unwrap_or(group);
        let mut bits = 0;
        for digit in digits {
            bits = bits << 6 | ALPHABET.iter().position(|known| known == digit)? as u32;
        }
        let [_, decoded @ ..] = (bits << (6 * (4 - digits.len()))).to_be_bytes();
        bytes.extend_from_slice(&decoded[..digits.len().checked_sub(1)?]);
    }
    let mut again = Vec::with_capacity(text.len());
    encode(&bytes, &mut again);
    (again == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_standard_hold_both_ways() {
        let cases = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, text) in cases {
            let mut out = Vec::new();
            encode(plain.as_bytes(), &mut out);
            assert_eq!(out, text.as_bytes());
            assert_eq!(decode(text.as_bytes()).unwrap(), plain.as_bytes());
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        for text in ["Z", "Zg", "Zg=", "Zh==", "Zg==Zg==", "Zm9", "====", "=", "Zm9v=", "Zm 9", "Zm9v\n"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }
}
