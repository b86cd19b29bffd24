//! Whether repositories and store are sound after a round, and go on without help.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::command::{Context, Result, code_of, run, succeed};
use crate::compare::{Options, must_be_equal};
use crate::crash::verbs::Place;
use crate::ensure;
use crate::fixtures::Seeded;

use super::nemesis::Groups;
use super::runs::LOCKED;
use super::{Block, tree};

impl Block<'_> {
    /// Returns what is wrong in any place, and takes it as far as it goes by itself: a snapshot, a restore, a collection.
    pub fn judge(&mut self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for at in 0..self.places.len() {
            let place = &self.places[at];
            let mut note =
                |result: Result| problems.extend(result.err().map(|why| format!("{}: {}", place.top.display(), why.0)));
            note(is_sound(place));
            let commits = history(place)?;
            let lost: Vec<_> = self.acknowledged[at].iter().filter(|commit| !commits.contains(*commit)).collect();
            if !lost.is_empty() {
                note(Err(format!("commits were acknowledged and are not in the history: {lost:?}").into()));
            }
            let fresh = commits.iter().filter(|commit| !self.restored[at].contains(*commit));
            fresh.for_each(|commit| note(restores(place, &self.scratch, commit)));
            self.restored[at].extend(commits);
            note(goes_on(place, &self.scratch));
        }
        let collected = succeed(&mut self.places[0].gdo(&["gc", "--prune", "now"])).map(drop);
        problems.extend(collected.err().map(|why| why.0));
        for place in &self.places {
            problems
                .extend(is_sound(place).and_then(|()| has_no_leftovers(place)).err().map(|why| format!("after a gc: {}", why.0)));
        }
        Ok(problems)
    }

    /// Restores every commit once more.
    pub fn judge_all_commits(&self) -> Result {
        for (place, commits) in self.places.iter().zip(&self.restored) {
            commits.iter().try_for_each(|commit| restores(place, &self.scratch, commit))?;
        }
        Ok(())
    }

    /// Freezes a snapshot somewhere in its midst, collects all garbage from every side, and lets it go on.
    pub fn freeze_a_snapshot(&mut self, round: u64) -> Result<Vec<String>> {
        let mut dice = Seeded::new((self.seed * 1000 + round) ^ 0xf0f0);
        let place = &self.places[0];
        // New for the tree, but perhaps known to the store: by a run that was killed, or by a commit that was dropped.
        let revived = dice.next() % 3;
        for name in ["revived", "large"] {
            let number = if name == "revived" { revived } else { dice.next() % 1_000_000 };
            fs::write(place.work().join(name), tree::content(number * 5))?;
        }
        let groups = Groups::default();
        let mut snapshot = place.gdo(&["snapshot", "-m", "frozen", "."]);
        let output = self.scratch.join("frozen.txt");
        let file = fs::File::create(&output)?;
        let mut child = snapshot.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn()?;
        groups.enter(child.id(), "the snapshot".into());
        std::thread::sleep(Duration::from_micros(dice.next() % 80_000));
        groups.signal_all(child.id(), Signal::STOP);
        let mut problems = Vec::new();
        if child.try_wait()?.is_none() {
            // What follows takes longer than anybody waits for a lock, and no clock takes part in what is kept.
            let mut others = vec![place.git(&["gc", "--quiet", "--prune=now"])];
            others.extend(self.places.iter().map(|place| place.gdo(&["gc", "--prune", "now"])));
            for command in &mut others {
                let ended = run(command)?;
                let is_expected = [0, LOCKED].contains(&ended.code) || command.get_program() == "git";
                if !is_expected {
                    problems.push(format!(
                        "beside a frozen snapshot '{}' exits with {}: {}",
                        ended.line,
                        ended.code,
                        ended.tail(5)
                    ));
                }
            }
        }
        groups.signal_all(child.id(), Signal::CONT);
        let code = code_of(child.wait()?);
        let said = fs::read_to_string(&output)?;
        if ![0, LOCKED, 10].contains(&code) {
            problems.push(format!("a snapshot that was frozen exits with {code}: {said}"));
        }
        for result in [is_sound(place), goes_on(place, &self.scratch)] {
            problems
                .extend(result.err().map(|why| format!("after a snapshot that was frozen and exited with {code}: {}", why.0)));
        }
        for name in ["revived", "large"] {
            fs::remove_file(place.work().join(name))?;
        }
        // Dropped, so that the next one finds it unreferenced.
        succeed(&mut place.gdo(&["snapshot", "-m", "without", "."]))?;
        Ok(problems)
    }
}

/// Nothing is damaged: by stock git, and by our own check.
fn is_sound(place: &Place) -> Result {
    let fsck = run(&mut place.git(&["fsck", "--strict", "--full"]))?;
    let said = fsck.said();
    let is_harmless = |line: &&str| line.starts_with("dangling ") || line.starts_with("notice: ");
    let complaints: Vec<&str> = said.lines().filter(|line| !is_harmless(line)).collect();
    ensure!(fsck.code == 0 && complaints.is_empty(), "git fsck: {}", complaints.join("; "));
    succeed(&mut place.gdo(&["check", "--data"])).map(drop)
}

/// Returns all commits of the branch, which must stand in one line.
fn history(place: &Place) -> Result<BTreeSet<String>> {
    let listed = succeed(&mut place.git(&["rev-list", "--parents", "HEAD"]))?.text();
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split(' ').collect()).collect();
    for pair in lines.windows(2) {
        ensure!(pair[0].get(1..) == Some(&[pair[1][0]]), "the history is no line at {}", pair[0].join(" "));
    }
    Ok(lines.iter().map(|line| line[0].to_owned()).collect())
}

/// The commit can be restored; every file in it is whole, and none is missing.
fn restores(place: &Place, scratch: &Path, commit: &str) -> Result {
    let target = scratch.join("commit");
    succeed(&mut place.gdo(&["restore", "--source", commit, "--target", target.to_str().ok_or("a plain name")?]))?;
    let n_files = tree::must_be_whole(&target).context(|| format!("commit {commit}"))?;
    let listed = succeed(&mut place.git(&["ls-tree", "-r", "--name-only", commit]))?.text();
    let n_listed = listed.lines().filter(|path| !path.starts_with(".git-devops/")).count();
    fs::remove_dir_all(&target)?;
    ensure!(n_files == n_listed, "commit {commit} has {n_listed} files, restored are {n_files}");
    Ok(())
}

/// The next snapshot works at once, and has exactly what is there.
fn goes_on(place: &Place, scratch: &Path) -> Result {
    succeed(&mut place.gdo(&["snapshot", "-m", "afterwards", "."]))?;
    // Nothing is to be changed, but a restore that was killed may have left temporary files, which the next one removes.
    succeed(&mut place.gdo(&["restore"]))?;
    let target = scratch.join("afterwards");
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    succeed(&mut place.gdo(&["restore", "--source", "HEAD", "--target", target.to_str().ok_or("a plain name")?]))?;
    must_be_equal(&place.work(), &target, &Options::default()).context(|| "restored elsewhere")?;
    Ok(fs::remove_dir_all(&target)?)
}

fn has_no_leftovers(place: &Place) -> Result {
    let mut find = Command::new("find");
    find.arg(place.git_dir()).arg(&place.store).arg(place.work());
    find.args([
        "(",
        "-name",
        ".gdo-tmp-*",
        "-o",
        "-name",
        "*.keep",
        "-o",
        "-name",
        "HEAD.lock",
        "-o",
        "-name",
        "index.lock",
        ")",
    ]);
    let found = succeed(&mut find)?.text();
    ensure!(found.is_empty(), "left behind: {found}");
    Ok(())
}
