//! Text that ends in its own checksum: a last line `end HEX`, with the BLAKE3 of all bytes before it.
//!
//! So end the mirror, what is announced to be moved, what was verified, the floor, a holder's promises, the list of segments, and which packs
//! were maintained.

/// Bytes of that line.
const END_LEN: usize = "end ".len() + 2 * blake3::OUT_LEN + "\n".len();

/// Returns `text`, which is empty or ends a line, with its end line.
pub fn add(text: impl Into<Vec<u8>>) -> Vec<u8> {
    let mut text = text.into();
    let end = end_of(&text);
    text.extend_from_slice(end.as_bytes());
    text
}

/// Returns what stands before the end line, or `None` if that is missing, or of other bytes.
pub fn strip(bytes: &[u8]) -> Option<&[u8]> {
    let (text, end) = bytes.split_at(bytes.len().checked_sub(END_LEN)?);
    (end == end_of(text).as_bytes()).then_some(text)
}

fn end_of(text: &[u8]) -> String {
    format!("end {}\n", blake3::hash(text).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_its_end_line_is_read_again_and_nothing_else() {
        for text in ["", "one\n", "one\ntwo\n"] {
            let whole = add(text);
            assert_eq!(strip(&whole), Some(text.as_bytes()));
            for at in 0..whole.len() {
                let mut bad = whole.clone();
                bad[at] ^= 1;
                assert_eq!(strip(&bad), None, "{at}");
                assert_eq!(strip(&whole[..at]), None, "{at}");
            }
            assert_eq!(strip(&[&whole[..], b"\n"].concat()), None);
        }
    }

    #[test]
    fn the_last_line_is_what_the_formats_say() {
        // From `printf 'one\n' | b3sum`.
        let end = "e0e63aa4c8e1ed796cb104d8a074e553c99fff18d140e886667013ef2780ae23";
        assert_eq!(add("one\n"), format!("one\nend {end}\n").into_bytes());
    }
}
