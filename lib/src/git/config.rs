//! The repository's configuration: read as git reads it, and refused if a key is not on the allow list.
//!
//! A key that we don't know could name a program (`core.sshCommand`, `filter.*`, `diff.*.textconv`), another file
//! (`include.path`) or another host (`url.*`); so what is not listed is refused, not only what is known to be bad.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use super::command::{Git, list_config};
use crate::durable::{self, Temp};
use crate::error::{Context, Error, Kind, Result};

/// The settings of one repository; every key was checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    entries: Vec<(String, Option<Vec<u8>>)>,
}

impl Config {
    /// Reads and checks the configuration of `git`.
    pub(super) fn read(git: &Git) -> Result<Self> {
        let path = git.git_dir().join("config");
        let what = || format!("cannot use the configuration '{}'", path.display());
        for other in ["commondir", "config.worktree"] {
            if durable::is_there(&git.git_dir().join(other)) {
                let message = format!("'{}' would bring in other settings; remove it", git.git_dir().join(other).display());
                return Err(Error::new(Kind::Refused, message));
            }
        }
        Self::decode(&list_config(&path).context(what)?).context(what)
    }

    /// Decodes what `git config -z --list` prints, and refuses what is not allowed.
    pub fn decode(listing: &[u8]) -> Result<Self> {
        let mut entries = Vec::new();
        for record in listing.split(|&b| b == 0).filter(|record| !record.is_empty()) {
            let (key, value) = match record.iter().position(|&b| b == b'\n') {
                Some(at) => (&record[..at], Some(record[at + 1..].to_vec())),
                None => (record, None),
            };
            let key = String::from_utf8_lossy(key).into_owned();
            check(&key, value.as_deref())?;
            entries.push((key, value));
        }
        let config = Self { entries };
        match REQUIRED.iter().find(|(key, _)| config.get(key).is_none()) {
            Some((key, value)) => Err(Error::new(Kind::Refused, must_be(key, value))),
            None => Ok(config),
        }
    }

    /// Returns the value of `key` (section and name in lower case), the last one if it is set several times.
    ///
    /// A key without `=` counts as `true`, as in git.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.get_all(key).last()
    }

    /// Returns all values of `key`, in the order of the file.
    pub fn get_all(&self, key: &str) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_deref().unwrap_or(b"true"))
    }

    /// Returns every key that starts with `prefix`, with its value, in the order of the file.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &[u8])> {
        let entries = self.entries.iter().filter(move |(name, _)| name.starts_with(prefix));
        entries.map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or(b"true")))
    }
}

impl Git {
    /// Sets one key of the repository's configuration, in the place of any value that it had, durably.
    ///
    /// Git edits a copy, because it renames what it wrote without a sync: a power cut could leave an empty configuration, and with it no repository.
    /// Two callers at once lose one of the settings, but never the file.
    pub fn set_config(&self, key: &str, value: &str) -> Result<()> {
        check(key, Some(value.as_bytes()))?;
        let path = self.git_dir().join("config");
        let edited = self
            .edited_config(&path, &["--replace-all", key, value])
            .context(|| format!("cannot set '{key}' in '{}'", path.display()))?;
        durable::publish(&path, &edited, 0o600)
    }

    /// Takes one key out of the repository's configuration, durably; one that is not there is no error.
    pub fn unset_config(&self, key: &str) -> Result<()> {
        let path = self.git_dir().join("config");
        let what = || format!("cannot take '{key}' out of '{}'", path.display());
        if Config::read(self)?.get(key).is_none() {
            return Ok(());
        }
        let edited = self.edited_config(&path, &["--unset-all", key]).context(what)?;
        durable::publish(&path, &edited, 0o600)
    }

    fn edited_config(&self, path: &Path, edit: &[&str]) -> Result<Vec<u8>> {
        let mut copy = Temp::beside(path, 0o600)?;
        copy.file.write_all(&durable::read(path)?)?;
        let mut args: Vec<&OsStr> = vec!["config".as_ref(), "--file".as_ref(), copy.path().as_ref()];
        args.extend(edit.iter().map(OsStr::new));
        self.run(&args)?;
        durable::read(copy.path())
    }
}

/// Returns the text of the configuration of a new repository.
pub(super) fn initial() -> String {
    format!(
        "\
[core]
\trepositoryFormatVersion = 0
\tbare = true
\tfileMode = true
\tlogAllRefUpdates = always
\tfsync = all
\tfsyncMethod = fsync
\tautocrlf = false
\tquotePath = false
\tuntrackedCache = false
\tsparseCheckout = true
\tsparseCheckoutCone = false
[index]
\tversion = 2
[gc]
\tauto = 0
\tpruneExpire = 2.weeks
[maintenance]
\tauto = false
[transfer]
\tfsckObjects = true
[status]
\tshowUntrackedFiles = no
[merge]
\trenames = false
\tdirectoryRenames = false
[merge \"devops-meta\"]
\tname = metadata, entry by entry
\tdriver = {METADATA_DRIVER}
"
    )
}

const METADATA_DRIVER: &str = "git-devops merge-metadata %O %A %B %P";
pub(super) const METADATA_DRIVER_KEY: &str = "merge.devops-meta.driver";

/// Returns the merge driver for metadata with the program at another place than in the search path.
pub(super) fn metadata_driver(program: &OsStr) -> OsString {
    let mut driver = program.to_owned();
    driver.push(METADATA_DRIVER.trim_start_matches("git-devops"));
    driver
}

/// Keys without which a power cut loses commits, or git writes a work tree.
const REQUIRED: &[(&str, &str)] =
    &[("core.repositoryformatversion", "0"), ("core.bare", "true"), ("core.fsync", "all"), ("core.fsyncmethod", "fsync")];

/// Keys that may be set, but only to this.
const FIXED: &[(&str, &str)] = &[
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("core.autocrlf", "false"),
    ("core.sparsecheckout", "true"),
    ("core.sparsecheckoutcone", "false"),
    ("transfer.fsckobjects", "true"),
    ("merge.devops.driver", "false"), // in older repositories; nothing ever selected it
    ("merge.devops-meta.driver", METADATA_DRIVER),
];

/// Keys that may be set to anything: none of them names a program, a file or a host.
const ALLOWED: &[&str] = &[
    "branch.sort",
    "core.abbrev",
    "core.bigfilethreshold",
    "core.checkstat",
    "core.commitgraph",
    "core.compression",
    "core.deltabasecachelimit",
    "core.filemode",
    "core.logallrefupdates",
    "core.multipackindex",
    "core.packedgitlimit",
    "core.packedgitwindowsize",
    "core.preloadindex",
    "core.quotepath",
    "core.trustctime",
    "core.untrackedcache",
    "core.whitespace",
    "diff.algorithm",
    "diff.context",
    "diff.mnemonicprefix",
    "diff.noprefix",
    "diff.renames",
    "gc.pruneexpire",
    "gc.reflogexpire",
    "gc.reflogexpireunreachable",
    "index.threads",
    "index.version",
    "log.abbrevcommit",
    "log.date",
    "log.decorate",
    "merge.conflictstyle",
    "merge.devops-meta.name",
    "merge.devops.name",
    "merge.directoryrenames",
    "merge.renames",
    "pack.deltacachesize",
    "pack.threads",
    "pack.windowmemory",
    "status.showuntrackedfiles",
    "tag.sort",
    "user.email",
    "user.name",
];

/// Sections of which every key is harmless, or is ours.
const ALLOWED_SECTIONS: &[&str] = &["advice.", "color.", "devops."];

fn check(key: &str, value: Option<&[u8]>) -> Result<()> {
    if let Some((_, fixed)) = REQUIRED.iter().chain(FIXED).find(|(name, _)| *name == key) {
        return match value.unwrap_or(b"true") == fixed.as_bytes() {
            true => Ok(()),
            false => Err(Error::new(Kind::Refused, must_be(key, fixed))),
        };
    }
    if ALLOWED.contains(&key) || ALLOWED_SECTIONS.iter().any(|section| key.starts_with(section)) {
        return Ok(());
    }
    let shown = key.escape_default();
    Err(Error::new(
        Kind::Refused,
        format!("setting '{shown}' is not allowed here; remove it with 'git config --file FILE --unset-all {shown}'"),
    ))
}

fn must_be(key: &str, value: &str) -> String {
    format!("setting '{key}' must be '{value}'; repair it with 'git config --file FILE --replace-all {key} \"{value}\"'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_with(lines: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        Git::init(dir.path(), "main").unwrap();
        let path = dir.path().join("config");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text + lines).unwrap();
        Git::open(dir.path()).map(|(_, config)| config)
    }

    #[test]
    fn our_own_configuration_is_accepted_and_peoples_settings_are_read() {
        let config =
            open_with("[user]\n\tname = Ann\n[devops]\n\tstore = /a\n\tstore = /b\n\tkeep\n[devops \"Peer\"]\n\turl = x\n")
                .unwrap();
        assert_eq!(config.get("user.name"), Some(&b"Ann"[..]));
        assert_eq!(config.get("devops.store"), Some(&b"/b"[..]));
        assert_eq!(config.get_all("devops.store").count(), 2);
        assert_eq!(config.get("devops.keep"), Some(&b"true"[..]));
        assert_eq!(config.with_prefix("devops.Peer.").collect::<Vec<_>>(), [("devops.Peer.url", &b"x"[..])]);
        assert_eq!(config.get("devops.none"), None);
    }

    #[test]
    fn a_setting_that_is_not_listed_is_refused_by_name() {
        let cases = [
            ("[include]\npath = /tmp/x\n", "include.path"),
            ("[includeIf \"gitdir:/\"]\npath = /tmp/x\n", "includeif.gitdir:/.path"),
            ("[core]\nsshCommand = x\n", "core.sshcommand"),
            ("[core]\nfsmonitor = x\n", "core.fsmonitor"),
            ("[core]\nworktree = /\n", "core.worktree"),
            ("[core]\nhooksPath = /tmp\n", "core.hookspath"),
            ("[filter \"x\"]\nclean = x\n", "filter.x.clean"),
            ("[diff \"x\"]\ntextconv = x\n", "diff.x.textconv"),
            ("[diff]\nexternal = x\n", "diff.external"),
            ("[url \"a\"]\ninsteadOf = b\n", "url.a.insteadof"),
            ("[uploadpack]\npackObjectsHook = x\n", "uploadpack.packobjectshook"),
            ("[credential]\nhelper = x\n", "credential.helper"),
            ("[alias]\nx = !x\n", "alias.x"),
            ("[extensions]\nrefStorage = reftable\n", "extensions.refstorage"),
            ("[merge \"devops-meta\"]\ndriver = x\n", "merge.devops-meta.driver"),
            ("[core]\nbare = false\n", "core.bare"),
            ("[core]\nfsync = none\n", "core.fsync"),
            ("[gc]\nauto = 1\n", "gc.auto"),
        ];
        for (lines, key) in cases {
            let error = open_with(lines).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{lines}");
            assert!(format!("{error:#}").contains(&format!("setting '{key}' ")), "{error:#}");
        }
        let error = Config::decode(b"core.bare\ntrue\0").unwrap_err();
        assert!(error.to_string().contains("'core.repositoryformatversion' must be '0'"), "{error}");
    }

    #[test]
    fn a_configuration_that_git_cannot_read_is_corrupt() {
        assert_eq!(open_with("[core\n").unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn settings_from_beside_the_configuration_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        Git::init(dir.path(), "main").unwrap();
        std::fs::write(dir.path().join("commondir"), "/tmp\n").unwrap();
        assert_eq!(Git::open(dir.path()).unwrap_err().kind(), Kind::Refused);
    }
}
