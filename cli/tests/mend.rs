//! What a repair brings back, and from where.

use crate::common::World;

#[test]
fn what_one_source_cannot_give_a_repair_takes_from_the_next() {
    let world = World::new();
    world.sh("seq 500000 >large");
    world.snapshot();
    // A store that tells of chunks and whose packs cannot be opened, then the file.
    world.sh("cp -r .git/devops/store ../one; mkdir ../two; mv large ../two; rm -r .git/devops/store/packs/*");
    world.sh("cd ../one/packs; for pack in */*.pack; do rm -f $pack; ln -s ${pack##*/} $pack; done");
    let run = world.gdo(&["check", "--repair", "--from", "../one", "--from", "../two"]);
    assert_eq!(run.code, 0, "{}{}", run.out, run.err);
    let warnings: Vec<&str> = run.err.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("/one': not all of it can be read; "), "{}", run.err);
    world.ok(&["check", "--data"]);
    world.sh("gdo cat HEAD:large | cmp - ../two/large");
}
