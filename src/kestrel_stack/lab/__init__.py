"""The lab: containers that are hosts (systemd, sshd, an own address), and what ``bin/up`` does with them.

Nothing outside this folder knows that the lab's hosts are containers: it writes an ordinary Ansible inventory
and an OpenSSH configuration, and runs ``ansible-playbook`` and ``fab`` as programs.
"""
