//! The root document: who may sign releases of which type, and who may change that. Format: `docs/formats/trust.md`.

use std::collections::{BTreeMap, BTreeSet};

use super::openpgp::{self, BEGIN, Certificate, Fingerprint};
use super::{TypeName, number};
use crate::error::{Error, Reason, Result};
use crate::metadata::base64;

/// Longest document with its signatures, in bytes: what 64 of the longest certificates would take, nobody needs.
pub const MAX_ROOT: usize = 1 << 20;
const MAX_KEYS: usize = 64;
const MAX_TYPES: usize = 256;
const MAX_SIGNATURES: usize = 32;
const HEAD: &str = "git-devops root 1";
/// The name of the line for all types that have none.
const ANY: &str = "*";

/// What a root document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// From 1, without gaps.
    pub version: u64,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// Until when it counts, in seconds since 1970; `None` for ever.
    pub expires: Option<u64>,
    /// How many root keys must sign the next one.
    pub threshold: usize,
    /// Who may sign the next one.
    pub roots: BTreeSet<Fingerprint>,
    /// Who never counts again.
    pub revoked: BTreeSet<Fingerprint>,
    /// Who signs releases, by the name of a type; `*` stands for those that have no line.
    types: BTreeMap<String, Signers>,
    keys: BTreeMap<Fingerprint, Certificate>,
}

/// Who signs releases of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signers {
    /// The epoch that these releases have.
    pub epoch: u32,
    /// Whose signature counts.
    pub keys: BTreeSet<Fingerprint>,
}

/// A root document with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFile {
    /// What it says.
    pub root: Root,
    /// Its text, which is what is signed.
    pub text: String,
    /// OpenPGP packets; whether they are good was not looked at.
    pub signatures: Vec<Vec<u8>>,
}

impl Root {
    /// Returns the first document: these keys sign everything, one of them is enough.
    pub fn first(certificates: Vec<Certificate>) -> Result<Self> {
        let keys: BTreeMap<_, _> = certificates.into_iter().map(|one| (one.fingerprint, one)).collect();
        let names: BTreeSet<Fingerprint> = keys.keys().copied().collect();
        let types = BTreeMap::from([(ANY.to_owned(), Signers { epoch: 1, keys: names.clone() })]);
        let root =
            Self { version: 1, issued: 0, expires: None, threshold: 1, roots: names, revoked: BTreeSet::new(), types, keys };
        root.checked()
    }

    /// Returns who signs releases of a type; `None` if nobody does.
    pub fn signers(&self, kind: &TypeName) -> Option<&Signers> {
        self.types.get(kind.as_str()).or_else(|| self.types.get(ANY))
    }

    /// Returns all lines about types, by name; `*` stands for those that have none.
    pub fn types(&self) -> impl Iterator<Item = (&str, &Signers)> {
        self.types.iter().map(|(name, signers)| (name.as_str(), signers))
    }

    /// Returns the certificates of all keys that count for anything.
    pub fn certificates(&self) -> impl Iterator<Item = &Certificate> {
        self.keys.values()
    }

    /// Returns a document with these changes; the keys that no line names any more are left out.
    pub fn with(&self, changes: &[Change]) -> Result<Self> {
        let mut next = self.clone();
        changes.iter().try_for_each(|change| next.change(change))?;
        let named: BTreeSet<Fingerprint> = next.named().collect();
        next.keys.retain(|name, _| named.contains(name));
        next.checked()
    }

    fn change(&mut self, change: &Change) -> Result<()> {
        match change {
            Change::Issue { version, issued, expires } => {
                (self.version, self.issued, self.expires) = (*version, *issued, *expires);
            }
            Change::Threshold(threshold) => self.threshold = *threshold,
            Change::AddRoot(one) => {
                self.roots.insert(one.fingerprint);
                self.keys.insert(one.fingerprint, one.clone());
            }
            Change::RemoveRoot(name) => {
                let is_there = self.roots.remove(name);
                is_there.then_some(()).ok_or_else(|| wrong(&format!("{name} is no root key")))?;
            }
            Change::AddSigner(kind, one) => {
                self.line(kind).keys.insert(one.fingerprint);
                self.keys.insert(one.fingerprint, one.clone());
            }
            Change::RemoveSigner(kind, name) => {
                let is_there = self.line(kind).keys.remove(name);
                is_there.then_some(()).ok_or_else(|| wrong(&format!("{name} does not sign type '{}'", shown(kind.as_ref()))))?;
            }
            Change::RaiseEpoch(kind) => {
                let line = self.line(kind);
                line.epoch = line.epoch.checked_add(1).ok_or_else(|| wrong("the epoch cannot get higher"))?;
            }
            Change::Revoke(name) => {
                self.revoked.insert(*name);
                self.roots.remove(name);
                self.types.values_mut().for_each(|signers| {
                    signers.keys.remove(name);
                });
            }
        }
        Ok(())
    }

    /// Returns the line of a type, which begins as that of all others; `None` for the one of all others.
    fn line(&mut self, kind: &Option<TypeName>) -> &mut Signers {
        let any = self.types.get(ANY).cloned().unwrap_or(Signers { epoch: 1, keys: BTreeSet::new() });
        self.types.entry(shown(kind.as_ref()).to_owned()).or_insert(any)
    }

    fn named(&self) -> impl Iterator<Item = Fingerprint> {
        self.roots.iter().chain(self.types.values().flat_map(|signers| &signers.keys)).copied()
    }

    fn checked(self) -> Result<Self> {
        let named: BTreeSet<Fingerprint> = self.named().collect();
        let problem = if self.version == 0 {
            "versions begin with 1".to_owned()
        } else if self.threshold == 0 || self.threshold > self.roots.len() {
            format!("{} of {} root keys cannot sign", self.threshold, self.roots.len())
        } else if let Some(name) = named.intersection(&self.revoked).next() {
            format!("key {name} is revoked and named")
        } else if self.types.len() > MAX_TYPES || named.len() > MAX_KEYS || self.revoked.len() > 16 * MAX_KEYS {
            format!("there are more than {MAX_KEYS} keys or {MAX_TYPES} types")
        } else if let Some((name, _)) = self.types.iter().find(|(_, signers)| signers.keys.is_empty() || signers.epoch == 0) {
            format!("nobody signs type '{name}'")
        } else if !named.iter().eq(self.keys.keys()) {
            "a key is named and not there, or there and not named".to_owned()
        } else if self.expires.is_some_and(|expires| expires <= self.issued) {
            "it expires before it was issued".to_owned()
        } else {
            return Ok(self);
        };
        Err(wrong(&problem))
    }

    /// Encodes the text that is signed.
    pub fn encode(&self) -> String {
        let Self { version, issued, threshold, .. } = self;
        let expires = self.expires.map_or("never".to_owned(), |expires| expires.to_string());
        let mut text = format!("{HEAD}\nversion {version}\nissued {issued}\nexpires {expires}\nthreshold {threshold}\n");
        self.roots.iter().for_each(|name| text += &format!("root {name}\n"));
        self.revoked.iter().for_each(|name| text += &format!("revoked {name}\n"));
        for (name, signers) in &self.types {
            let keys: Vec<String> = signers.keys.iter().map(ToString::to_string).collect();
            text += &format!("type {name} {} {}\n", signers.epoch, keys.join(" "));
        }
        for one in self.keys.values() {
            let mut encoded = Vec::new();
            base64::encode(&one.bytes, &mut encoded);
            text += &format!("pubkey {} {}\n", one.fingerprint, String::from_utf8_lossy(&encoded));
        }
        text
    }

    fn decode(text: &str) -> Result<Self> {
        let root = Self::decode_fields(text).ok_or_else(|| wrong("a field is missing or is not as it must be"))?.checked()?;
        match root.encode() == text {
            true => Ok(root),
            false => Err(wrong("it is not what a writer writes")),
        }
    }

    fn decode_fields(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.strip_prefix('\n')?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let (version, issued) = (number(field("version")?)?, number(field("issued")?)?);
        let expires = match field("expires")? {
            "never" => None,
            moment => Some(number(moment)?),
        };
        let threshold = number(field("threshold")?)?;
        let mut root = Self {
            version,
            issued,
            expires,
            threshold,
            roots: BTreeSet::new(),
            revoked: BTreeSet::new(),
            types: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        lines.try_for_each(|line| root.take(line))?;
        Some(root)
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let (word, rest) = line.split_once(' ')?;
        match word {
            "root" => self.roots.insert(rest.parse().ok()?).then_some(()),
            "revoked" => self.revoked.insert(rest.parse().ok()?).then_some(()),
            "type" => {
                let mut words = rest.split(' ');
                let name = words.next().filter(|name| *name == ANY || name.parse::<TypeName>().is_ok())?;
                let epoch = number(words.next()?)?;
                let keys = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
                self.types.insert(name.to_owned(), Signers { epoch, keys }).is_none().then_some(())
            }
            "pubkey" => {
                let (name, encoded) = rest.split_once(' ')?;
                let one = Certificate::decode(&base64::decode(encoded.as_bytes())?).ok()?;
                let is_it = one.fingerprint.to_string() == name && self.keys.len() < MAX_KEYS;
                (is_it && self.keys.insert(one.fingerprint, one).is_none()).then_some(())
            }
            _ => None,
        }
    }
}

/// One step from a document to the next one. A type of `None` stands for all that have no line of their own.
#[derive(Clone, Debug)]
pub enum Change {
    /// Gives it its number and its times, in seconds since 1970.
    Issue {
        /// Its version.
        version: u64,
        /// When it is made.
        issued: u64,
        /// Until when it counts.
        expires: Option<u64>,
    },
    /// How many root keys must sign what follows.
    Threshold(usize),
    /// Somebody may sign what follows.
    AddRoot(Certificate),
    /// Somebody may not sign what follows any more.
    RemoveRoot(Fingerprint),
    /// Somebody may sign releases of a type.
    AddSigner(Option<TypeName>, Certificate),
    /// Somebody may not sign releases of a type any more.
    RemoveSigner(Option<TypeName>, Fingerprint),
    /// The numbers of releases of a type begin anew.
    RaiseEpoch(Option<TypeName>),
    /// A key never counts again, for anything.
    Revoke(Fingerprint),
}

fn shown(kind: Option<&TypeName>) -> &str {
    kind.map_or(ANY, TypeName::as_str)
}

impl RootFile {
    /// Decodes a document with its signatures; what no writer writes is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).ok().filter(|_| bytes.len() <= MAX_ROOT);
        let text = text.ok_or_else(|| wrong("it is too long, or not text"))?;
        let (text, armored) = text.split_at(text.find(BEGIN).unwrap_or(text.len()));
        let root = Root::decode(text)?;
        let signatures = openpgp::dearmor(armored, MAX_SIGNATURES).map_err(|error| wrong(&error.to_string()))?;
        Ok(Self { root, text: text.to_owned(), signatures })
    }

    /// Returns a document that nobody signed yet.
    pub fn unsigned(root: Root) -> Self {
        let text = root.encode();
        Self { root, text, signatures: Vec::new() }
    }

    /// Encodes document and signatures.
    pub fn encode(&self) -> Vec<u8> {
        let armored: String = self.signatures.iter().map(|packet| openpgp::armor(packet)).collect();
        format!("{}{armored}", self.text).into_bytes()
    }
}

fn wrong(why: &str) -> Error {
    Error::refused(Reason::Root, format!("not a root document: {why}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a certificate that no gpg would take, and that has a name.
    pub fn certificate(seed: u8) -> Certificate {
        Certificate::decode(&[0xc6, 3, 4, seed, seed]).unwrap()
    }

    pub fn root() -> Root {
        let first = Root::first(vec![certificate(1), certificate(2), certificate(3)]).unwrap();
        let web: Option<TypeName> = Some("web".parse().unwrap());
        let times = Change::Issue { version: 2, issued: 1_795_300_000, expires: Some(1_826_836_000) };
        let any = Change::RemoveSigner(None, certificate(2).fingerprint);
        let one = Change::RemoveRoot(certificate(3).fingerprint);
        let changes =
            [times, Change::Threshold(2), Change::RaiseEpoch(web.clone()), any, one, Change::Revoke(certificate(4).fingerprint)];
        first.with(&changes).unwrap()
    }

    #[test]
    fn a_document_is_read_back_as_it_was_written() {
        let file = RootFile::unsigned(root());
        assert_eq!(RootFile::decode(&file.encode()).unwrap(), file);
        let lines: Vec<&str> = file.text.lines().map(|line| line.split(' ').next().unwrap()).collect();
        let expected = "git-devops version issued expires threshold root root revoked type type pubkey pubkey pubkey";
        assert_eq!(lines.join(" "), expected);
    }

    /// The keys of the example have no certificates that are any, so its lines are compared, not its meaning.
    #[test]
    fn the_example_of_the_page_has_the_lines_that_are_written() {
        let page = include_str!("../../../docs/formats/trust.md");
        let example = page.split("```\n").nth(1).unwrap();
        let keyword =
            |text: &str| -> Vec<String> { text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect() };
        let mut words = keyword(example.split(BEGIN).next().unwrap());
        words.dedup();
        let mut ours = keyword(&root().encode());
        ours.dedup();
        assert_eq!(words, ours);
        assert!(example.starts_with("git-devops root 1\nversion 2\nissued 1795300000\nexpires 1826836000\nthreshold 2\n"));
        assert!(
            root().encode().starts_with("git-devops root 1\nversion 2\nissued 1795300000\nexpires 1826836000\nthreshold 2\n")
        );
    }

    #[test]
    fn what_no_writer_writes_is_refused() {
        let text = root().encode();
        let line = |word: &str| text.lines().find(|line| line.starts_with(word)).unwrap().to_owned() + "\n";
        let roots: Vec<String> = text.lines().filter(|line| line.starts_with("root ")).map(|line| format!("{line}\n")).collect();
        let cases = [
            ("version 2\n".to_owned(), "version 0\n".to_owned()),
            ("version 2\n".into(), "version 02\n".into()),
            ("threshold 2\n".into(), "threshold 0\n".into()),
            ("threshold 2\n".into(), "threshold 3\n".into()),
            ("expires 1826836000".into(), "expires 1795300000".into()),
            (roots.concat(), [&roots[1][..], &roots[0]].concat()),
            (roots[0].clone(), roots[0].repeat(2)),
            (line("pubkey"), String::new()),
            (line("pubkey"), line("pubkey").to_lowercase()),
            (line("revoked"), roots[0].replace("root", "revoked")),
            (line("type *"), "type * 1 \n".into()),
            (line("type web"), line("type web").replace("web", "../x")),
            ("git-devops root 1".into(), "git-devops root 2".into()),
            ("threshold 2\n".into(), "threshold 2\nmore 1\n".into()),
        ];
        for (from, to) in cases {
            assert!(text.contains(&from), "{from}");
            let error = RootFile::decode(text.replacen(&from, &to, 1).as_bytes()).unwrap_err();
            assert_eq!(error.reason(), Some(Reason::Root), "{to}");
        }
        for cut in 0..text.len() {
            assert!(RootFile::decode(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        assert!(RootFile::decode(&[b'x'; MAX_ROOT + 1]).is_err());
    }
}
