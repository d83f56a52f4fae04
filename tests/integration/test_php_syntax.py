"""The stage of bin/test that has PHP read every file."""

from kestrel_stack.lab import php_syntax


def test_a_file_that_php_refuses_is_named_and_fails(tmp_path, capsys):
    (tmp_path / "php/bin").mkdir(parents=True)
    (tmp_path / "php/good.php").write_text("<?php echo 1;\n")
    (tmp_path / "php/bin/program").write_text("#!/usr/bin/env php\n<?php echo 1;\n")
    assert php_syntax.main(tmp_path) == 0
    (tmp_path / "php/bad.php").write_text("<?php echo 1\necho 2;\n")
    assert php_syntax.main(tmp_path) == 1
    assert "bad.php" in capsys.readouterr().out
