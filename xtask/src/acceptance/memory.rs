//! Memory stays bounded, whatever is stored.

use std::path::Path;
use std::process::Command;

use crate::command::{Context, Result, measured, succeed, wrapped};
use crate::compare::{Options, must_be_equal};
use crate::{ensure, fixtures};

use super::{Place, World};

/// The address space that each process may have, and with it all that it can ever hold in memory.
const LIMIT: u64 = 256 << 20;

pub fn sparse_image(world: &World) -> Result<String> {
    let (size, data) = if world.full { (64 << 30, 3 << 30) } else { (4 << 30, 300 << 20) };
    stays_small(world, "memory-sparse", |work| fixtures::disk_image(&work.join("disk.img"), size, data))
}

pub fn many_files(world: &World) -> Result<String> {
    let n = if world.full { 300_000 } else { 50_000 };
    stays_small(world, "memory-many", |work| fixtures::many_files(work, n))
}

/// Stores a tree, restores it and looks after it under the limit, once with all of it in the page cache and once with none.
fn stays_small(world: &World, name: &str, build: impl FnOnce(&Path) -> Result) -> Result<String> {
    let mut place = world.place(name)?;
    build(&place.work)?;
    let mut peaks = Vec::new();
    for is_cold in [false, true] {
        let label = if is_cold { "cold" } else { "warm" };
        place.git_dir = place.dir.join(format!("{label}.git"));
        place.store = place.dir.join(format!("{label}.store"));
        place.init()?;
        let target = place.dir.join("restored");
        std::fs::create_dir(&target)?;
        let to = target.to_str().expect("BUG: scratch directories have plain names");
        let verbs: [&[&str]; 7] = [
            &["snapshot", "-m", label, "."],
            &["snapshot", "-m", label, "."],
            &["status"],
            &["restore", "--target", to, "."],
            &["check", "--data"],
            &["gc"],
            &["maintain"],
        ];
        // The last two take long, and what is in the page cache makes no difference to them.
        for args in &verbs[..if is_cold { 5 } else { 7 }] {
            if is_cold {
                drop_caches()?;
            }
            let peak = limited(&place, args).context(|| format!("'{}' with {label} caches", args[0]))?;
            peaks.push(format!("{label} {} {} MiB", args[0], peak >> 20));
        }
        must_be_equal(&place.work, &target, &Options::default()).context(|| "restored tree differs from the stored one")?;
        fixtures::remove(&target)?;
        succeed(&mut place.gdo(&["check", "--data"]))?;
    }
    Ok(peaks.join(", "))
}

/// Runs the program under the limit and returns the largest resident set of its processes.
fn limited(place: &Place, args: &[&str]) -> Result<u64> {
    let under_limit = wrapped(&place.gdo(args), Path::new("prlimit"), &[&format!("--as={LIMIT}")]);
    let (outcome, usage) = measured(&under_limit, &place.dir)?;
    outcome.exits(0)?;
    ensure!(usage.peak_rss <= LIMIT, "resident set of {} MiB in spite of the limit", usage.peak_rss >> 20);
    Ok(usage.peak_rss)
}

fn drop_caches() -> Result {
    succeed(&mut Command::new("sync"))?;
    // A container may not be allowed to: then the second round is as warm as the first.
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_takes_more_than_the_limit_fails() {
        if Command::new("prlimit").arg("--version").output().is_err() || !Path::new("/usr/bin/time").exists() {
            return;
        }
        let dir = crate::command::target_dir().join("xtask-tests/limited");
        let place = Place::new(Path::new("/usr/bin/env"), &dir).unwrap();
        let run = |mib: u32| {
            let mut piped = Command::new("sh");
            piped.args(["-c", &format!("head -c 400M /dev/zero | tail -c {}M >/dev/null", mib)]);
            let limit = format!("--as={LIMIT}");
            measured(&wrapped(&piped, Path::new("prlimit"), &[&limit]), &place.dir).unwrap()
        };
        let (small, usage) = run(50);
        assert!(small.code == 0 && usage.peak_rss > 40 << 20, "{usage:?}");
        assert_ne!(run(350).0.code, 0);
    }
}
