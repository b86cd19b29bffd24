//! Five hosts with lines of a given speed, in a star, a tree, a ring and a full graph: what one of them made is on all of them in the end.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use super::net::write_noise;
use crate::command::{Context, Failure, Result, run, succeed};
use crate::ensure;
use crate::netns::{Host, Net};

const N_HOSTS: usize = 5;

/// Who knows whom, and who pulls when; host 0 has the file.
struct Topology {
    name: &'static str,
    /// Whom each host knows.
    knows: [&'static [usize]; N_HOSTS],
    /// Those of one wave pull at once.
    waves: &'static [&'static [usize]],
    /// How often the file has to go over the busiest line of each wave, one wave after the other.
    least: f64,
}

const TOPOLOGIES: &[Topology] = &[
    Topology { name: "star", knows: [&[], &[0], &[0], &[0], &[0]], waves: &[&[1, 2, 3, 4]], least: 4.0 },
    Topology { name: "tree", knows: [&[], &[0], &[0], &[1], &[2]], waves: &[&[1, 2], &[3, 4]], least: 3.0 },
    Topology { name: "ring", knows: [&[4, 1], &[0, 2], &[1, 3], &[2, 4], &[3, 0]], waves: &[&[1, 4], &[2, 3]], least: 3.0 },
    Topology {
        name: "full graph",
        knows: [&[1, 2, 3, 4], &[0, 2, 3, 4], &[0, 1, 3, 4], &[0, 1, 2, 4], &[0, 1, 2, 3]],
        waves: &[&[1], &[2, 3, 4]],
        least: 2.5,
    },
];

/// Measures all of them: programs `gdo`, files below `scratch`, a file of `len` bytes, lines that send `mbit` megabits in a second.
pub fn measure(gdo: &Path, scratch: &Path, len: u64, mbit: u32) -> Result<String> {
    let mut text = format!(
        "A file of {} MiB that nothing compresses, made on one of five hosts, which send {mbit} Mbit/s each. Hosts pull in waves, first those that know \
         the first host, then those that know them. The least time is that in which the busiest line of each wave can send the bytes of the file; \
         in the ring and the full graph those of one wave give each other what they have. Each host's file was compared in the end.\n\n\
         | topology | pulled by | seconds | least | share | moved beyond the file, at most |\n|---|---|--:|--:|--:|--:|\n",
        len >> 20
    );
    for topology in TOPOLOGIES {
        let _ = fs::remove_dir_all(scratch);
        let row = Fleet::new(gdo, scratch, mbit, topology)?.spread(len, mbit).context(|| topology.name)?;
        eprintln!("{row}");
        writeln!(text, "{row}").expect("BUG: a string");
    }
    Ok(text)
}

struct Fleet<'a> {
    gdo: &'a Path,
    net: Net,
    topology: &'a Topology,
}

impl<'a> Fleet<'a> {
    fn new(gdo: &'a Path, scratch: &Path, mbit: u32, topology: &'a Topology) -> Result<Self> {
        let mut net = Net::new(scratch)?;
        for _ in 0..N_HOSTS {
            net.add(Some(mbit))?;
        }
        let fleet = Self { gdo, net, topology };
        for at in 0..N_HOSTS {
            fs::create_dir_all(fleet.tree(at))?;
            fleet.does(at, &["init", "--quiet"])?;
        }
        for (at, knows) in topology.knows.iter().enumerate() {
            for other in *knows {
                fleet.connect(at, *other)?;
            }
        }
        Ok(fleet)
    }

    fn host(&self, at: usize) -> &Host {
        self.net.host(at)
    }

    fn tree(&self, at: usize) -> PathBuf {
        self.host(at).dir.join("tree")
    }

    fn gdo(&self, at: usize, args: &[&str]) -> Command {
        let mut command = self.host(at).command(self.gdo);
        command.arg("-C").arg(self.tree(at)).args(args);
        command
    }

    fn does(&self, at: usize, args: &[&str]) -> Result {
        succeed(&mut self.gdo(at, args)).map(drop)
    }

    fn connect(&self, at: usize, other: usize) -> Result {
        let (here, there) = (self.host(at), self.host(other));
        let serve = format!("{} --git-dir {} serve", self.gdo.display(), self.tree(other).join(".git").display());
        there.authorize(&here.key(), Some(&serve))?;
        let (name, address, key) = (format!("h{other}"), format!("root@{}", there.address), here.key().display().to_string());
        self.does(at, &["remote", "add", &name, &address, "--host-key", &there.host_key()?, "-i", &key])
    }

    /// Makes the file on the first host, lets all others pull it, and returns what that took as a row.
    fn spread(&self, len: u64, mbit: u32) -> Result<String> {
        write_noise(&self.tree(0).join("large"), len)?;
        self.does(0, &["snapshot", "--quiet", "."])?;
        let before: Vec<u64> = (0..N_HOSTS).map(|at| self.host(at).received()).collect::<Result<_>>()?;
        let started = Instant::now();
        for wave in self.topology.waves {
            std::thread::scope(|scope| {
                let pulls: Vec<_> = wave.iter().map(|at| scope.spawn(move || self.pull(*at))).collect();
                pulls.into_iter().try_for_each(|pull| pull.join().expect("BUG: a thread panicked"))
            })?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let mut beyond: f64 = 0.0;
        for (at, before) in before.iter().enumerate().skip(1) {
            self.expect_equal(at)?;
            // What comes in includes what others ask for, which is little.
            beyond = beyond.max(100.0 * ((self.host(at).received()? - before) as f64 / len as f64 - 1.0));
        }
        let least = self.topology.least * len as f64 * 8.0 / (f64::from(mbit) * 1e6);
        let waves: Vec<String> = self.topology.waves.iter().map(|wave| format!("{}", wave.len())).collect();
        Ok(format!(
            "| {} | {} | {seconds:.1} | {least:.1} | {:.0} % | {beyond:.1} % |",
            self.topology.name,
            waves.join(", then "),
            100.0 * least / seconds
        ))
    }

    /// Lets a host get what one of those that it knows has; the chunks come from all of them.
    fn pull(&self, at: usize) -> Result {
        let outcome = run(&mut self.gdo(at, &["fetch", "--json"]))?;
        ensure!(outcome.code == 0, "fetch: {}", outcome.said());
        let knows = self.topology.knows[at].iter().map(|other| format!("h{other}/main"));
        let source = knows.into_iter().find(|branch| self.does(at, &["git", "rev-parse", "--verify", "--quiet", branch]).is_ok());
        let source = source.ok_or("nobody has the branch")?;
        let outcome = run(&mut self.gdo(at, &["get", "--json", "--source", &source]))?;
        ensure!(matches!(outcome.code, 0 | 3), "get: {}", outcome.said());
        let said: Value = serde_json::from_slice(&outcome.stdout).map_err(|_| Failure(outcome.said()))?;
        ensure!(said["missing"] == 0, "chunks are missing: {}", outcome.said());
        // What it has, others can get from it.
        self.does(at, &["git", "update-ref", "refs/heads/main", &source])
    }

    fn expect_equal(&self, at: usize) -> Result {
        let cat = self.gdo(at, &["cat", "main:large"]).stdout(Stdio::piped()).spawn()?;
        let output = cat.stdout.ok_or("the output is piped")?;
        let same = Command::new("cmp").arg("-").arg(self.tree(0).join("large")).stdin(output).status()?;
        ensure!(same.success(), "on host {at} the file is another one");
        Ok(())
    }
}
