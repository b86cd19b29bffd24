//! What a host tells of itself to whoever pulls from it. Format: `docs/formats/report.md`.

use crate::error::{Error, Kind, Result};
use crate::git::Oid;
use crate::metadata::{escaped, unescaped};
use crate::placement::HolderId;
use crate::placement::record::{is_key, is_name};

/// Longest report that is read, in bytes.
pub const MAX_REPORT: usize = 64 << 10;
/// Paths that are named in one.
pub const MAX_NAMED: usize = 500;
/// What paths may take of it, in bytes.
const MAX_PATHS: usize = 60 << 10;
const HEAD: &str = "git-devops report 1\n";
const MODELS: [&str; 2] = ["congruent", "convergent"];

/// What a host tells; whether it told it, its signature proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Its public key: type and key, separated by a blank.
    pub key: String,
    /// What it calls itself.
    pub name: String,
    /// Higher in each report.
    pub generation: u64,
    /// When it was made, by its clock, in seconds since 1970.
    pub issued: u64,
    /// `congruent` or `convergent`.
    pub model: String,
    /// The type that it follows.
    pub kind: String,
    /// The commit that it applied last.
    pub applied: Option<Oid>,
    /// The number of the release that it accepted.
    pub release: Option<u64>,
    /// Why it halted, if it stands there.
    pub halted: Option<String>,
    /// Whether nothing is applied until a newer release.
    pub is_held: bool,
    /// Entries that a person left out.
    pub n_skipped: u64,
    /// Handlers that are still to be run.
    pub n_owed: u64,
    /// Files and directories that its type has.
    pub n_covered: u64,
    /// What it looks like.
    pub fingerprint: [u8; 32],
    /// Paths that are not as they were applied.
    pub n_drift: u64,
    /// Whether it could not look at everything.
    pub is_partial: bool,
    /// Some of them, ascending, each with its digest; `None` if it is gone.
    pub differs: Vec<(Vec<u8>, Option<[u8; 32]>)>,
}

impl Report {
    /// Returns who tells it.
    pub fn id(&self) -> HolderId {
        HolderId::of_key(&self.key)
    }

    /// Says whether another report says the same, but for when.
    pub fn says_the_same(&self, other: &Self) -> bool {
        Self { generation: other.generation, issued: other.issued, ..self.clone() } == *other
    }

    /// Leaves out what does not fit.
    pub fn shorten(&mut self) {
        let mut n_bytes = 0;
        let fits = |(path, _): &&(Vec<u8>, Option<[u8; 32]>)| {
            n_bytes += 80 + escaped(path).len();
            n_bytes <= MAX_PATHS
        };
        let n = self.differs.iter().take(MAX_NAMED).take_while(fits).count();
        self.differs.truncate(n);
    }

    /// Encodes it as the text that is signed.
    pub fn encode(&self) -> Vec<u8> {
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let Self { key, name, generation, issued, model, kind, n_skipped, n_owed, n_covered, n_drift, .. } = self;
        let (applied, release) = (or_none(self.applied.map(|at| at.to_string())), or_none(self.release.map(|n| n.to_string())));
        let (halted, hold) = (or_none(self.halted.clone()), if self.is_held { "yes" } else { "no" });
        let fingerprint = blake3::Hash::from_bytes(self.fingerprint).to_hex();
        let mut text = format!(
            "{HEAD}key {key}\nname {name}\ngeneration {generation}\nissued {issued}\nmodel {model}\ntype {kind}\napplied {applied}\nrelease \
             {release}\nhalted {halted}\nhold {hold}\nskipped {n_skipped}\nowed {n_owed}\ncovered {n_covered}\nfingerprint {fingerprint}\ndrift \
             {n_drift}\n"
        )
        .into_bytes();
        if self.is_partial {
            text.extend(b"partial yes\n");
        }
        for (path, digest) in &self.differs {
            let word =
                digest.map_or("gone".to_owned(), |digest| format!("differs {}", blake3::Hash::from_bytes(digest).to_hex()));
            text.extend([word.as_bytes(), b" ", &escaped(path), b"\n"].concat());
        }
        text
    }

    /// Decodes a report; what no writer writes is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= MAX_REPORT);
        let report = text.and_then(Self::decode_fields).filter(|report| report.encode() == bytes);
        report.ok_or_else(|| Error::new(Kind::Refused, "the report is not what a host writes"))
    }

    fn decode_fields(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.lines().peekable();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let or_none = |value: &str| if value == "-" { None } else { Some(value.to_owned()) };
        let key = field("key").filter(|key| is_key(key))?.to_owned();
        let name = field("name").filter(|name| is_name(name))?.to_owned();
        let (generation, issued) = (field("generation")?.parse().ok()?, field("issued")?.parse().ok()?);
        let model = field("model").filter(|model| MODELS.contains(model))?.to_owned();
        let kind = field("type").filter(|kind| !kind.is_empty() && kind.len() <= 200)?.to_owned();
        let applied = match or_none(field("applied")?) {
            Some(hex) => Some(Oid::from_hex(hex.as_bytes()).ok()?),
            None => None,
        };
        let release = match or_none(field("release")?) {
            Some(number) => Some(number.parse().ok()?),
            None => None,
        };
        let halted = or_none(field("halted")?);
        let is_word = |why: &String| why.len() <= 64 && why.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        if !halted.as_ref().is_none_or(is_word) || !kind.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let is_held = field("hold")? == "yes";
        let mut number = |name: &str| field(name)?.parse().ok();
        let (n_skipped, n_owed, n_covered) = (number("skipped")?, number("owed")?, number("covered")?);
        let fingerprint = *blake3::Hash::from_hex(field("fingerprint")?).ok()?.as_bytes();
        let n_drift = field("drift")?.parse().ok()?;
        let is_partial = lines.next_if_eq(&"partial yes").is_some();
        let mut differs: Vec<(Vec<u8>, Option<[u8; 32]>)> = Vec::new();
        for line in lines {
            let (digest, path) = match line.strip_prefix("gone ") {
                Some(path) => (None, path),
                None => {
                    let (hex, path) = line.strip_prefix("differs ")?.split_once(' ')?;
                    (Some(*blake3::Hash::from_hex(hex).ok()?.as_bytes()), path)
                }
            };
            let path = unescaped(path.as_bytes()).ok()?;
            if differs.last().is_some_and(|(last, _)| *last >= path) {
                return None;
            }
            differs.push((path, digest));
        }
        let fits = differs.len() <= MAX_NAMED && differs.len() as u64 <= n_drift;
        let report = Self {
            key,
            name,
            generation,
            issued,
            model,
            kind,
            applied,
            release,
            halted,
            is_held,
            n_skipped,
            n_owed,
            n_covered,
            fingerprint,
            n_drift,
            is_partial,
            differs,
        };
        fits.then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            key: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIM7Fz6l3mX1lGmYJr0Dd3YF2r2HkC1kH3uT8pL5aQ0xZ".into(),
            name: "web1".into(),
            generation: 7,
            issued: 1_795_300_000,
            model: "congruent".into(),
            kind: "web".into(),
            applied: Oid::from_hex(b"0123456789012345678901234567890123456789").ok(),
            release: Some(17),
            halted: Some("command-failed".into()),
            is_held: true,
            n_skipped: 1,
            n_owed: 2,
            n_covered: 13_800,
            fingerprint: [7; 32],
            n_drift: 3,
            is_partial: false,
            differs: vec![(b"a b\n".to_vec(), Some([1; 32])), (b"etc/motd".to_vec(), None)],
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let full = report();
        let least =
            Report { applied: None, release: None, halted: None, is_held: false, is_partial: true, differs: vec![], ..report() };
        for report in [full, least] {
            assert_eq!(Report::decode(&report.encode()).unwrap(), report);
        }
    }

    #[test]
    fn what_no_host_writes_is_refused() {
        let text = String::from_utf8(report().encode()).unwrap();
        let cases = [
            String::new(),
            text.replace("report 1", "report 2"),
            text.replace("web1", "web 1"),
            text.replace("model congruent", "model odd"),
            text.replace("hold yes", "hold maybe"),
            text.replace("release 17", "release 017"),
            text.replace("command-failed", "\u{1b}[31m"),
            text.replace("type web", "type we\u{7}b"),
            text.replace("drift 3", "drift 1"),
            text.replace("gone etc/motd", "gone a"),
            text.clone() + "gone etc/motd\n",
            text.clone() + "\n",
            text.trim_end().to_owned(),
        ];
        for case in cases {
            assert_eq!(Report::decode(case.as_bytes()).unwrap_err().kind(), Kind::Refused, "{case}");
        }
        assert!(Report::decode(&vec![b'x'; MAX_REPORT + 1]).is_err());
    }

    #[test]
    fn a_report_names_no_more_than_fits() {
        let path = |n: usize| [format!("{n:04}").as_bytes(), &[0xff; 200]].concat();
        let mut long = Report { n_drift: 1000, differs: (0..1000).map(|n| (path(n), Some([9; 32]))).collect(), ..report() };
        long.shorten();
        assert!(long.differs.len() > 50 && long.encode().len() <= MAX_REPORT, "{}", long.differs.len());
        assert_eq!(Report::decode(&long.encode()).unwrap(), long);
    }
}
