//! Whether HEAD, configuration and refs are where they were left: compared with the [`Mirror`] whenever a repository is opened, put back where the
//! witnesses agree, and refused where only a person can know.

use std::path::Path;

use super::{Places, Repo};
use crate::durable::{self, Lock};
use crate::error::{Error, Kind, Result};
use crate::git::mirror::{self, HEALED, Mtime};
use crate::git::moving::Moving;
use crate::git::refs::RefMove;
use crate::git::{Deviation, Git, Mirror, Objects, Oid};
use crate::journal::HostLog;

/// What was found when the repository was opened.
#[derive(Clone, Debug, Default)]
pub struct Witnessed {
    /// What was not as it was left, and is again.
    pub healed: Vec<Deviation>,
    /// What is not as it was left, and still is not.
    pub open: Vec<Deviation>,
}

impl Witnessed {
    /// Fails if there is something that must be settled first.
    pub(super) fn must_be_settled(&self) -> Result<()> {
        let Some(found) = self.open.iter().find(|found| found.stops) else { return Ok(()) };
        let Deviation { path, problem, remedy, .. } = found;
        Err(Error::new(Kind::Corrupt, format!("'{}': {problem}; {remedy}; see also 'gdo check'", path.display())))
    }
}

/// Reads the mirror; what is wrong with it is no reason to stop, as long as the refs and their logs agree.
fn read_mirror(places: &Places, witnessed: &mut Witnessed) -> Result<Option<Mirror>> {
    let problem = match Mirror::read(&places.state) {
        Ok(Some(mirror)) => return Ok(Some(mirror)),
        Ok(None) => "it is missing: nothing tells whether HEAD, configuration and refs are as they were left".to_owned(),
        Err(error) if error.kind() == Kind::Corrupt => format!("{error:#}"),
        Err(error) => return Err(error),
    };
    let remedy = "'gdo check --repair' makes it anew from what is there; so does the next snapshot".to_owned();
    witnessed.open.push(Deviation::of_mirror(Mirror::path(&places.state), problem, remedy));
    Ok(None)
}

/// Puts back what git needs to open the repository at all.
pub(super) fn heal_files(places: &Places) -> Result<Witnessed> {
    let mut witnessed = Witnessed::default();
    let Some(mirror) = read_mirror(places, &mut witnessed)? else { return Ok(witnessed) };
    let found = mirror::examine_files(&places.git_dir, &mirror)?;
    if found.iter().any(|found| found.stops) {
        let lock = lock(places)?;
        let (stops, rest): (Vec<_>, Vec<_>) =
            mirror::examine_files(&places.git_dir, &mirror)?.into_iter().partition(|found| found.stops);
        Git::put_back(&places.git_dir, &places.state, &stops, Some(&mirror))?;
        renew(places, None, &rest, &lock)?;
        witnessed.healed = stops;
        witnessed.open.extend(rest);
    } else {
        witnessed.open.extend(found);
    }
    Ok(witnessed)
}

/// Puts back refs, where it is beyond doubt where they were.
pub(super) fn heal_refs(places: &Places, objects: &Objects, witnessed: &mut Witnessed) -> Result<()> {
    let mirror = Mirror::read(&places.state).ok().flatten();
    let noted_at = Mirror::noted_at(&places.state)?;
    let found = examine_refs(places, objects, mirror.as_ref(), noted_at)?;
    if !found.iter().any(Deviation::is_curable) {
        witnessed.open.extend(found);
        return Ok(());
    }
    let lock = lock(places)?;
    let found = examine_refs(places, objects, mirror.as_ref(), noted_at)?;
    let (curable, rest): (Vec<_>, Vec<_>) = found.into_iter().partition(Deviation::is_curable);
    Git::put_back(&places.git_dir, &places.state, &curable, mirror.as_ref())?;
    if mirror.is_some() {
        let doubtful: Vec<_> = witnessed.open.iter().chain(&rest).cloned().collect();
        renew(places, None, &doubtful, &lock)?;
    }
    witnessed.healed.extend(curable);
    witnessed.open.extend(rest);
    Ok(())
}

fn lock(places: &Places) -> Result<Lock> {
    let lock = Lock::exclusive(&places.state.join("lock"))
        .map_err(|error| error.wrap("HEAD, the configuration or a ref is damaged and cannot be put back now"))?;
    // Whoever was killed while it moved a ref left git's lock on it.
    Git::at(&places.git_dir).heal_stale_locks(&lock)?;
    Ok(lock)
}

/// Finds refs that are not as they were left, but for those that a run which did not come to its end was about to move there.
fn examine_refs(places: &Places, objects: &Objects, mirror: Option<&Mirror>, noted_at: Option<Mtime>) -> Result<Vec<Deviation>> {
    let mut found = mirror::examine_refs(&places.git_dir, objects, mirror, noted_at)?;
    if found.is_empty() {
        return Ok(found);
    }
    let (moving, back, git) = (Moving::read(&places.state), announced(places), Git::at(&places.git_dir));
    let is_announced = |found: &Deviation| {
        let name = found.path.strip_prefix(&places.git_dir).ok()?.to_str()?;
        let now = git.read_ref(name).ok()??;
        let is_back = back.as_ref().is_some_and(|(branch, oid)| branch == name && *oid == now);
        Some(is_back || moving.get(name) == Some(now))
    };
    found.retain(|found| is_announced(found) != Some(true));
    Ok(found)
}

/// Returns the branch that a rollback was about to move, and where to, if it did not come to its end.
fn announced(places: &Places) -> Option<(String, Oid)> {
    let log = HostLog::open(&places.state).ok()?;
    let last = log.lines().iter().rev().find(|line| matches!(line.kind.as_str(), "backing" | "back"))?;
    let oid = Oid::from_hex(last.get("to").as_bytes()).ok().filter(|_| last.kind == "backing")?;
    Some((format!("refs/heads/{}", last.get("branch")), oid))
}

/// Writes a mirror of what is there now, but for what is `doubtful` in addition to what `objects` shows to be.
fn renew(places: &Places, objects: Option<&Objects>, doubtful: &[Deviation], _held: &Lock) -> Result<()> {
    let now = Mirror::of(&places.git_dir)?;
    let Some(old) = Mirror::read(&places.state).ok().flatten() else { return now.write(&places.state) };
    let mut doubtful = doubtful.to_vec();
    if let Some(objects) = objects {
        doubtful.extend(mirror::examine_files(&places.git_dir, &old)?);
        doubtful.extend(examine_refs(places, objects, Some(&old), Mirror::noted_at(&places.state)?)?);
    }
    let new = old.advanced(now, &doubtful, &places.git_dir);
    if new != old {
        new.write(&places.state)?;
    }
    Moving::withdraw(&places.state)
}

/// Writes the first mirror of a repository that was just made, or renews it after we changed the configuration.
pub(super) fn begin(places: &Places, held: &Lock) -> Result<()> {
    renew(places, Some(&Objects::open(&places.git_dir)?), &[], held)
}

impl Repo {
    /// Notes in the mirror where the refs are now; what no witness explains stays as it was noted.
    ///
    /// Called after each move of a ref: a run that is killed in between leaves a mirror that git's log explains.
    pub(crate) fn note_refs(&self, held: &Lock) -> Result<()> {
        self.objects.refresh();
        renew(&self.places, Some(&self.objects), &[], held)
    }

    /// Moves refs that may go anywhere, not only forward, as `git`, durably; [`Repo::note_refs`] comes after it.
    ///
    /// It is announced before: of a power cut in between neither the mirror nor git's log, which git does not sync, would know.
    pub(crate) fn turn_refs(&self, git: &Git, moves: &[RefMove], message: &str, _held: &Lock) -> Result<()> {
        Moving::of(moves).announce(&self.places.state)?;
        git.move_refs(moves, message)
    }

    /// The same for one ref.
    pub(crate) fn turn_ref(
        &self,
        git: &Git,
        (name, new): (&str, Oid),
        old: Option<Oid>,
        message: &str,
        held: &Lock,
    ) -> Result<()> {
        self.turn_refs(git, &[RefMove { name: name.to_owned(), old, new: Some(new) }], message, held)
    }

    /// Takes HEAD, configuration and refs for right as they are now: after what a person did to them.
    ///
    /// Does nothing while another run is at work: then git's logs have to do.
    pub fn accept_refs(&self) -> Result<()> {
        match Lock::exclusive(&self.places.state.join("lock")) {
            Err(error) if error.kind() == Kind::Locked => Ok(()),
            Err(error) => Err(error),
            Ok(_lock) => {
                let now = Mirror::of(&self.places.git_dir)?;
                let is_old = Mirror::read(&self.places.state).is_ok_and(|old| old.as_ref() == Some(&now));
                if is_old { Ok(()) } else { now.write(&self.places.state) }
            }
        }
    }

    /// Puts back also what could have been changed by a person, and makes the mirror anew where it is missing or damaged.
    pub(super) fn repair_refs(&self, held: &Lock) -> Result<()> {
        let mirror = Mirror::read(&self.places.state).ok().flatten();
        let git_dir = &self.places.git_dir;
        if let Some(mirror) = &mirror {
            let found = mirror::examine_files(git_dir, mirror)?;
            Git::put_back(git_dir, &self.places.state, &found, Some(mirror))?;
        }
        mirror::mend_logs(git_dir, &self.objects, &self.places.state)?;
        self.note_refs(held)
    }
}

/// Says whether there is a mirror, so that a repository without HEAD is a damaged one and not none.
pub(super) fn is_known(state: &Path) -> bool {
    durable::is_file(&Mirror::path(state))
}

/// Returns the sentence that tells what was put back.
pub fn told(found: &Deviation) -> String {
    debug_assert_eq!(found.remedy, HEALED);
    format!("'{}': {}; it was put back", found.path.display(), found.problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ref_that_was_announced_to_go_back_is_no_damage_and_one_that_was_not_is() {
        for is_announced in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let places = Places::of_directory(dir.path());
            Repo::init(&places, "main").unwrap();
            let repo = Repo::open(places.clone()).unwrap();
            let git = repo.git.clone().with_identity(crate::git::Identity { name: "a".into(), email: "a@b".into() });
            let tree = String::from_utf8(git.run(&["mktree"]).unwrap()).unwrap();
            let commit = |args: &[&str]| {
                let oid = git.run(&[&["commit-tree", "-m", "x", tree.trim()], args].concat()).unwrap();
                Oid::from_hex(oid.trim_ascii()).unwrap()
            };
            let one = commit(&[]);
            let two = commit(&["-p", &one.to_string()]);
            let lock = repo.lock().unwrap();
            repo.turn_ref(&git, ("refs/heads/main", one), None, "one", &lock).unwrap();
            repo.turn_ref(&git, ("refs/heads/main", two), Some(one), "two", &lock).unwrap();
            repo.note_refs(&lock).unwrap();
            assert_eq!(Moving::read(&places.state), Moving::default());
            // The power goes when the ref was moved, and before git's log was on the disk.
            if is_announced {
                let back = RefMove { name: "refs/heads/main".into(), old: Some(two), new: Some(one) };
                Moving::of(&[back]).announce(&places.state).unwrap();
            }
            std::fs::write(places.git_dir.join("refs/heads/main"), format!("{one}\n")).unwrap();
            drop(lock);
            let repo = Repo::open(places.clone()).unwrap();
            assert_eq!(repo.witnessed.healed.len(), usize::from(!is_announced));
            assert_eq!(repo.head().unwrap(), Some(if is_announced { one } else { two }));
            let lock = repo.lock().unwrap();
            repo.note_refs(&lock).unwrap();
            assert_eq!(Moving::read(&places.state), Moving::default());
            assert!(Repo::open(places).unwrap().witnessed.open.is_empty());
        }
    }
}
