//! What a holder tells of itself: who it is, until when it promises, and what it holds. Format: `docs/formats/holders.md`.

use super::HolderId;
use crate::error::{Error, Reason, Result};
use crate::id::ChunkId;

/// Longest record that is read, in bytes.
pub const MAX_RECORD: usize = 64 << 10;
/// Chunks in one list.
pub const MAX_LIST: usize = 1 << 20;
/// Lists of one record.
pub const MAX_LISTS: usize = 256;

const HEAD: &str = "git-devops holder 1\n";
const MAX_NAME: usize = 64;
/// In GiB: one EiB.
const MAX_CAPACITY: u64 = 1 << 30;
/// The longest promise that counts, in seconds: some 20 years.
const MAX_PROMISE: u64 = 20 * 366 * 86_400;
const KEY_TYPE: &str = "ssh-ed25519 ";
const KEY_LEN: usize = 68;
const PREFIX: usize = 8;

/// What a holder tells; whether it told it, its signature proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its public key: type and key, separated by a blank.
    pub key: String,
    /// What it calls itself.
    pub name: String,
    /// Higher in each record.
    pub generation: u64,
    /// When it was made, by the holder's clock, in seconds since 1970.
    pub issued: u64,
    /// Until when all that it holds is promised, by the holder's clock.
    pub until: u64,
    /// How much it can take, in GiB; at least 1.
    pub capacity: u64,
    /// What came and what went, the oldest first.
    pub lists: Vec<ListLine>,
}

/// One list of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListLine {
    /// Whether these chunks came or went.
    pub is_held: bool,
    /// How many they are.
    pub n_chunks: usize,
    /// BLAKE3 of the list.
    pub hash: [u8; 32],
}

impl ListLine {
    /// Returns the path that the `number`th list of a record has in its tree.
    pub fn path(&self, number: usize) -> String {
        format!("{}/{number}", if self.is_held { "held" } else { "gone" })
    }
}

impl Record {
    /// Returns who tells it.
    pub fn id(&self) -> HolderId {
        HolderId::of_key(&self.key)
    }

    /// Encodes the record as the text that is signed.
    pub fn encode(&self) -> String {
        let Self { key, name, generation, issued, until, capacity, .. } = self;
        let id = self.id();
        let mut text = format!(
            "{HEAD}id {id}\nkey {key}\nname {name}\ngeneration {generation}\nissued {issued}\nuntil {until}\ncapacity {capacity}\n"
        );
        for (number, list) in self.lists.iter().enumerate() {
            let kind = if list.is_held { "held" } else { "gone" };
            text += &format!("{kind} {number} {} {}\n", list.n_chunks, blake3::Hash::from_bytes(list.hash).to_hex());
        }
        text
    }

    /// Decodes a record; what no writer writes is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_RECORD);
        let record = text.and_then(Self::decode_fields);
        record
            .filter(|record| record.encode().as_bytes() == bytes)
            .ok_or_else(|| refused("the record is not what a holder writes"))
    }

    fn decode_fields(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        field("id")?; // the key tells it
        let key = field("key").filter(|key| is_key(key))?.to_owned();
        let name = field("name").filter(|name| is_name(name))?.to_owned();
        let mut number = |name: &str| field(name)?.parse().ok();
        let (generation, issued, until) = (number("generation")?, number("issued")?, number("until")?);
        let capacity = number("capacity").filter(|capacity| (1..=MAX_CAPACITY).contains(capacity))?;
        if until > issued.saturating_add(MAX_PROMISE) {
            return None;
        }
        let lists: Vec<ListLine> = lines.map(decode_list_line).collect::<Option<_>>()?;
        (lists.len() <= MAX_LISTS).then_some(Self { key, name, generation, issued, until, capacity, lists })
    }
}

fn decode_list_line(line: &str) -> Option<ListLine> {
    let mut words = line.split(' ');
    let is_held = match words.next()? {
        "held" => true,
        "gone" => false,
        _ => return None,
    };
    let _number = words.next()?; // the position tells it
    let n_chunks = words.next()?.parse().ok().filter(|n| (1..=MAX_LIST).contains(n))?;
    let hash = blake3::Hash::from_hex(words.next()?).ok()?;
    words.next().is_none().then_some(ListLine { is_held, n_chunks, hash: *hash.as_bytes() })
}

/// Says whether `name` can be that of a holder.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// Returns `name` as far as it can be that of a holder, or else `other`.
pub fn tidied(name: &str, other: &str) -> String {
    let tidy: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).take(MAX_NAME).collect();
    if is_name(&tidy) { tidy } else { other.to_owned() }
}

/// Says whether `key` is the text of an ed25519 key. 51 bytes are 68 digits of base64 without a bit to spare: one key has one text.
pub fn is_key(key: &str) -> bool {
    let digits = key.strip_prefix(KEY_TYPE).unwrap_or_default();
    digits.len() == KEY_LEN && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b))
}

/// What a list says of a chunk: its first 8 bytes, in the order of ids.
pub fn prefix(chunk: &ChunkId) -> u64 {
    u64::from_be_bytes(*chunk.as_bytes().first_chunk().expect("BUG: an id has 32 bytes"))
}

/// Encodes a list; `prefixes` ascend, without doubles.
pub fn encode_list(prefixes: &[u64]) -> Vec<u8> {
    prefixes.iter().flat_map(|prefix| prefix.to_be_bytes()).collect()
}

/// Decodes a list that `line` of a record names.
pub fn decode_list(bytes: &[u8], line: &ListLine) -> Result<Vec<u64>> {
    if bytes.len() / PREFIX != line.n_chunks
        || !bytes.len().is_multiple_of(PREFIX)
        || *blake3::hash(bytes).as_bytes() != line.hash
    {
        return Err(refused("a list of chunks is not the one that was signed"));
    }
    let prefixes: Vec<u64> = bytes.as_chunks::<PREFIX>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
    match prefixes.is_sorted_by(|a, b| a < b) {
        true => Ok(prefixes),
        false => Err(refused("a list of chunks is out of order")),
    }
}

/// Goes through the lists of a record and keeps track of the chunks that somebody asks about.
#[derive(Debug)]
pub struct Holdings<'a> {
    wanted: &'a [u64],
    is_held: Vec<bool>,
}

impl<'a> Holdings<'a> {
    /// Begins with nothing held; `wanted` ascends.
    pub fn new(wanted: &'a [u64]) -> Self {
        Self { wanted, is_held: vec![false; wanted.len()] }
    }

    /// Takes the next list.
    pub fn take(&mut self, list: &[u64], is_held: bool) {
        let mut at = 0;
        for prefix in list {
            at += self.wanted[at..].partition_point(|wanted| wanted < prefix);
            while self.wanted.get(at) == Some(prefix) {
                self.is_held[at] = is_held;
                at += 1;
            }
        }
    }

    /// Returns which of the wanted are held.
    pub fn finish(self) -> Vec<bool> {
        self.is_held
    }
}

/// Returns an error about a record that is not taken over.
pub fn refused(what: impl Into<String>) -> Error {
    Error::refused(Reason::Promise, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> String {
        format!("{KEY_TYPE}AAAAC3NzaC1lZDI1NTE5AAAAI{}", "M7Fz6l3mX1lGmYJr0Dd3YF2r2HkC1kH3uT8pL5aQ0xZ")
    }

    fn record() -> Record {
        let hash = |bytes: &[u8]| *blake3::hash(bytes).as_bytes();
        let lists = vec![
            ListLine { is_held: true, n_chunks: 1234, hash: hash(b"held") },
            ListLine { is_held: false, n_chunks: 12, hash: hash(b"gone") },
        ];
        let (issued, until) = (1_795_300_000, 1_795_400_000);
        Record { key: key(), name: "web1".into(), generation: 7, issued, until, capacity: 500, lists }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        assert_eq!(Record::decode(record().encode().as_bytes()).unwrap(), record());
        let page = include_str!("../../../docs/formats/holders.md");
        assert!(page.contains(&record().encode()), "the page should say:\n{}", record().encode());
    }

    #[test]
    fn what_no_holder_writes_is_refused() {
        let text = record().encode();
        let id = record().id().to_string();
        let other_id = HolderId::of_key("other").to_string();
        let long = "held 0 1 ".to_owned() + &"0".repeat(64) + "\n";
        let cases = [
            text.replace("holder 1\n", "holder 2\n"),
            text.replace(&id, &other_id),
            text.replace("ssh-ed25519", "ssh-rsa"),
            text.replace("QaQ0xZ", "QaQ0x="),
            text.replace("aQ0xZ\n", "aQ0xZ comment\n"),
            text.replace("name web1", "name web 1"),
            text.replace("name web1", "name "),
            text.replace("name web1", &format!("name {}", "x".repeat(65))),
            text.replace("generation 7", "generation +7"),
            text.replace("generation 7", "generation 07"),
            text.replace("until 1795400000", "until -1"),
            text.replace("until 1795400000", "until 18446744073709551616"),
            text.replace("capacity 500", "capacity 0"),
            text.replace("held 0", "held 1"),
            text.replace("held 0 1234", "held 0 0"),
            text.replace("held 0 1234", "held 0 1048577"),
            text.replace("gone 1", "went 1"),
            text.replace("gone 1 12 ", "gone 1 12  "),
            text.clone() + "more\n",
            text.trim_end().to_owned(),
            text.clone() + &long.repeat(300),
            String::new(),
        ];
        for case in cases.iter().filter(|case| **case != text) {
            assert_eq!(Record::decode(case.as_bytes()).unwrap_err().reason(), Some(Reason::Promise), "{case}");
        }
        assert!(cases.iter().filter(|case| **case == text).count() <= 1, "the replacements replace something");
        assert!(Record::decode(b"git-devops holder 1\n\xff").is_err());
    }

    #[test]
    fn lists_tell_what_came_and_did_not_go() {
        let line = |is_held, list: &[u64]| {
            let bytes = encode_list(list);
            (ListLine { is_held, n_chunks: list.len(), hash: *blake3::hash(&bytes).as_bytes() }, bytes)
        };
        let wanted = [1, 5, 5, 9, u64::MAX];
        let mut holdings = Holdings::new(&wanted);
        for (is_held, list) in [(true, &[0, 1, 5, u64::MAX][..]), (false, &[1, 5, 7]), (true, &[5])] {
            let (line, bytes) = line(is_held, list);
            holdings.take(&decode_list(&bytes, &line).unwrap(), is_held);
        }
        assert_eq!(holdings.finish(), [false, true, true, false, true]);
        let (good, bytes) = line(true, &[1, 2, 3]);
        for (wrong, bytes) in [
            (ListLine { n_chunks: 2, ..good }, &bytes[..]),
            (ListLine { n_chunks: usize::MAX, ..good }, &bytes),
            (good, &bytes[..16]),
            (good, &bytes[8..]),
            (line(true, &[2, 1]).0, &encode_list(&[2, 1])),
            (line(true, &[2, 2]).0, &encode_list(&[2, 2])),
        ] {
            assert_eq!(decode_list(bytes, &wrong).unwrap_err().reason(), Some(Reason::Promise));
        }
    }
}
