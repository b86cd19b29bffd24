//! What lay in the work tree when it was looked at, so that what came there since is not taken for it.

use std::collections::HashMap;

use crate::error::{Error, Kind, Result};
use crate::safepath::{FileKind, Stat, Time};

/// Entries by their paths, each as it was when it was looked at first.
#[derive(Clone, Debug, Default)]
pub struct Seen(HashMap<Vec<u8>, Option<Mark>>);

/// What tells an entry from another one, or from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    kind: FileKind,
    dev: (u32, u32),
    ino: u64,
    /// Of what is no directory: that changes with each name in it.
    content: Option<(u64, Time)>,
    /// Of what has one name only: it changes when another name comes or goes.
    ctime: Option<Time>,
}

impl Mark {
    fn of(stat: &Stat) -> Self {
        let is_dir = stat.kind == FileKind::Dir;
        Self {
            kind: stat.kind,
            dev: stat.dev,
            ino: stat.ino,
            content: (!is_dir).then_some((stat.size, stat.mtime)),
            ctime: (!is_dir && stat.nlink == 1).then_some(stat.ctime),
        }
    }

    /// Says whether an entry that was so is `now` the same; one that lost its other names still is.
    fn is_still(&self, now: &Self) -> bool {
        let is_ctime_right = self.ctime.is_none() || self.ctime == now.ctime;
        is_ctime_right && Self { ctime: None, ..*self } == Self { ctime: None, ..*now }
    }
}

impl Seen {
    /// Notes what is at `path`, unless it was looked at before.
    pub fn note(&mut self, path: &[u8], there: Option<&Stat>) {
        if !self.0.contains_key(path) {
            self.0.insert(path.to_vec(), there.map(Mark::of));
        }
    }

    /// Notes that what was at `path` went by our own doing.
    pub fn note_gone(&mut self, path: &[u8]) {
        self.0.insert(path.to_vec(), None);
    }

    /// Adds what was looked at `later`, where nothing was before.
    pub fn or(mut self, later: Self) -> Self {
        for (path, mark) in later.0 {
            self.0.entry(path).or_insert(mark);
        }
        self
    }

    /// Fails with [`Kind::Conflict`] if what is at `path` is not what was looked at; what was not looked at may be anything.
    pub fn must_be(&self, path: &[u8], now: Option<&Stat>) -> Result<()> {
        let is_same = match (self.0.get(path), now) {
            (None, _) | (Some(None), None) => true,
            (Some(Some(mark)), Some(now)) => mark.is_still(&Mark::of(now)),
            (Some(_), _) => false,
        };
        if is_same { Ok(()) } else { Err(changed()) }
    }
}

/// Returns the error for what was changed between a look and the change that it was for.
pub fn changed() -> Error {
    Error::new(
        Kind::Conflict,
        "somebody changed it since it was looked at; it stays as it is, and the same command again looks at it anew",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safepath::Dir;
    use std::fs;

    #[test]
    fn what_came_or_changed_since_is_told_from_what_only_lost_another_name() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        for name in ["edited", "replaced", "gone", "same", "linked", "mode"] {
            fs::write(at(name), "old").unwrap();
        }
        fs::hard_link(at("linked"), at("other")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        let root = Dir::open(temp.path()).unwrap();
        let stat = |name: &str| root.stat(name.as_bytes()).unwrap();
        let mut seen = Seen::default();
        for name in ["edited", "replaced", "gone", "same", "linked", "mode", "dir", "new"] {
            seen.note(name.as_bytes(), stat(name).as_ref());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(at("edited"), "new").unwrap();
        fs::write(at("second"), "old").unwrap();
        fs::rename(at("second"), at("replaced")).unwrap();
        fs::remove_file(at("gone")).unwrap();
        fs::remove_file(at("other")).unwrap();
        fs::set_permissions(at("mode"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        fs::write(at("dir/x"), "").unwrap();
        fs::write(at("new"), "").unwrap();
        seen.note(b"edited", stat("edited").as_ref());
        for (name, is_same) in [
            ("edited", false),
            ("replaced", false),
            ("gone", false),
            ("mode", false),
            ("new", false),
            ("same", true),
            ("linked", true),
            ("dir", true),
            ("never", true),
        ] {
            assert_eq!(seen.must_be(name.as_bytes(), stat(name).as_ref()).is_ok(), is_same, "{name}");
        }
        seen.note_gone(b"same");
        assert_eq!(seen.must_be(b"same", stat("same").as_ref()).unwrap_err().kind(), Kind::Conflict);
        let mut later = Seen::default();
        later.note(b"edited", stat("edited").as_ref());
        later.note(b"only later", None);
        let both = seen.or(later);
        assert!(both.must_be(b"edited", stat("edited").as_ref()).is_err());
        assert!(both.must_be(b"only later", stat("same").as_ref()).is_err());
    }
}
