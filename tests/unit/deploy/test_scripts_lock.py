"""The scripts that hold a host's lock, run for real by bash in a folder that stands for a host."""

from kestrel_stack.deploy import scripts


def test_of_many_who_lock_at_once_one_wins_and_the_others_see_it_whole(tree):
    for turn in range(6):
        go = tree.base / f"go-{turn}"
        wait = f"while [ ! -e {go} ]; do :; done\n"
        runs = [tree.start(wait + scripts.lock(str(tree.srv), {"id": f"id-{n}"})) for n in range(8)]
        go.touch()
        said = []
        for run in runs:
            said.append(run.stdout.read().decode().strip())
            assert run.wait(30) == 0
            for stream in (run.stdin, run.stdout, run.stderr):
                stream.close()
        taken = [n for n, text in enumerate(said) if text == "@ lock taken"]
        assert len(taken) == 1
        assert set(said) - {"@ lock taken"} == {f'@ lock held {{"id": "id-{taken[0]}"}}'}
        assert sorted(p.name for p in tree.srv.iterdir()) == [".deploy.lock", "releases", "shared", "venvs"]
        (tree.srv / ".deploy.lock").unlink()


def test_only_the_lock_with_the_right_id_is_removed(tree):
    tree.run(scripts.lock(str(tree.srv), {"id": "mine"}))
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), "other"))
    assert lines == ['@ kept {"id": "mine"} ']
    assert (tree.srv / ".deploy.lock").exists()
    _, lines, _ = tree.run(scripts.unlock(str(tree.srv), "mine"))
    assert lines == ["@ unlocked"]
    assert not (tree.srv / ".deploy.lock").exists()


def test_a_missing_folder_names_the_fix(tree):
    code, _, err = tree.run(scripts.lock(str(tree.base / "nowhere"), {"id": "1"}))
    assert code == 1
    assert "is missing: run ansible-playbook site.yml first" in err
