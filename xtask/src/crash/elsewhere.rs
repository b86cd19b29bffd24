//! What is there before the verbs that ask another host, and what they must have brought.

use crate::command::{Context, Result, run, succeed};
use crate::compare::{Options, compare};
use crate::{ensure, fixtures};

use super::verbs::{Brings, Place, Verb, one_commit, sh, tree};

/// Another host is known, and was fetched from; since then its branches moved, came and went.
pub fn more_elsewhere(place: &Place) -> Result {
    known_elsewhere(place)?;
    change_elsewhere(&place.host().place)
}

fn known_elsewhere(place: &Place) -> Result {
    one_commit(place)?;
    let (host, there) = (place.host(), &place.host().place);
    one_commit_without_init(there)?;
    succeed(&mut there.git(&["branch", "goes"]))?;
    succeed(&mut there.git(&["branch", "turns"]))?;
    let identity = host.identity();
    place.does(&["remote", "add", "origin", &host.address(), "--host-key", &host.host_key(), "--identity", &identity])?;
    place.does(&["fetch"]).map(drop)
}

/// The other host keeps a share, besides, and says so.
pub fn more_from_a_holder(place: &Place) -> Result {
    known_elsewhere(place)?;
    let there = &place.host().place;
    there.set("policy", "holder")?;
    there.did(&["sync"])?;
    place.does(&["fetch"])?;
    change_elsewhere(there)?;
    there.does(&["sync"]).map(drop)
}

/// Both hosts are holders and had promised all that they had; now the other one has more.
pub fn promised(place: &Place) -> Result {
    known_elsewhere(place)?;
    let there = &place.host().place;
    for host in [there, place] {
        host.set("policy", "holder")?;
        host.did(&["sync"])?;
    }
    change_elsewhere(there)?;
    there.does(&["sync"]).map(drop)
}

/// Both hosts are holders and have all; of each chunk only one needs to.
pub fn shared(place: &Place) -> Result {
    more_elsewhere(place)?;
    let there = &place.host().place;
    for host in [there, place] {
        [("policy", "holder"), ("copies", "1"), ("capacity", "10"), ("promise", "1h")]
            .iter()
            .try_for_each(|(key, value)| host.set(key, value))?;
    }
    there.did(&["sync"])?;
    place.does(&["fetch"])?;
    place.does(&["get", "--source", "origin/main"])?;
    place.did(&["sync"]).map(drop)
}

/// The same, and what need not be here has lapsed.
pub fn over(place: &Place) -> Result {
    shared(place)?;
    place.did(&["drop", "--surplus"])?;
    place.host().place.does(&["sync"]).map(drop)
}

/// Fails if what this holder told is more than it promised.
pub fn must_be_promised(place: &Place) -> Result {
    let Ok(ledger) = std::fs::read_to_string(place.store.join("promises")) else { return Ok(()) };
    let value = |text: &str, key: &str| -> Option<String> {
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned))
    };
    let id = value(&ledger, "holder").ok_or("a ledger without an id")?;
    let told = run(&mut place.git(&["show", &format!("refs/devops/holders/{id}:record")]))?;
    if told.code == 0 {
        for key in ["generation", "until"] {
            let number = |text: &str| value(text, key).and_then(|value| value.parse::<u64>().ok()).unwrap_or_default();
            let (told, promised) = (number(&told.text()), number(&ledger));
            ensure!(told <= promised, "this holder tells of {key} {told}, and noted {promised}");
        }
    }
    Ok(())
}

/// Returns what is here, and who else has it, for verbs that give it up.
pub fn held(place: &Place, verb: &Verb) -> Result<String> {
    match verb.name.starts_with("drop") {
        true => Ok(run(&mut place.gdo(&["whereis", "--json"]))?.text()),
        false => Ok(String::new()),
    }
}

/// The branches of another host are known; what it has in large files is not here.
pub fn fetched(place: &Place) -> Result {
    more_elsewhere(place)?;
    place.does(&["fetch"]).map(drop)
}

/// There is another host, and nothing here but an empty directory.
pub fn nothing_here(place: &Place) -> Result {
    one_commit_without_init(&place.host().place)?;
    std::fs::create_dir(place.work())?;
    sh(&place.work(), "touch -d '2020-02-02 02:02:02' .")
}

/// Makes a tree and its commit where there is an empty repository.
fn one_commit_without_init(there: &Place) -> Result {
    std::fs::remove_dir(there.work())?;
    tree(there)?;
    there.does(&["snapshot", "-m", "there", "."]).map(drop)
}

/// A file of several chunks is new, another changed; the branches are a new one, one less, the first one further, and one with another past.
fn change_elsewhere(there: &Place) -> Result {
    std::fs::write(there.work().join("larger"), fixtures::Seeded::new(10).bytes(2 << 20))?;
    fixtures::edit_4k(&there.work().join("large"), 50_000)?;
    sh(&there.work(), "echo more >more; find . -depth ! -name fixed -exec touch -h -d '2022-02-02 02:02:02' '{}' ';'")?;
    there.does(&["snapshot", "-m", "more there", "."])?;
    succeed(&mut there.git(&["branch", "comes/deep"]))?;
    let person = ["-c", "user.name=x", "-c", "user.email=x@example.org"];
    let other = succeed(&mut there.git(&[&person[..], &["commit-tree", "-m", "another past", "main^{tree}"]].concat()))?.text();
    succeed(&mut there.git(&["update-ref", "refs/heads/turns", &other]))?;
    there.does(&["check", "--accept"])?;
    succeed(&mut there.git(&["branch", "-D", "goes"])).map(drop)
}

/// Fails unless what a verb brings from another host is here: all of its files come out of this store.
pub fn must_have_come(place: &Place, verb: &Verb) -> Result {
    if !matches!(verb.brings, Brings::Chunks | Brings::Clone) {
        return Ok(());
    }
    let (there, out) = (&place.host().place, place.host().place.top.join("out"));
    fixtures::remove(&out)?;
    let target = out.display().to_string();
    place.does(&["restore", "--source", "origin/main", "--target", &target]).context(|| "what was to come is not here")?;
    let differences = compare(&there.work(), &out, &Options::default())?;
    let shown: Vec<String> = differences.iter().take(5).map(ToString::to_string).collect();
    ensure!(shown.is_empty(), "what came differs from what is there: {}", shown.join("; "));
    Ok(())
}
