"""Apache with the modules and directives that a script asks for, on a port of its own."""

import os
import pwd

from harness import free_port

MODULES = "/usr/lib/apache2/modules"


def give(path):
    """What Apache is to write to belongs to the user that its processes run as, which is another one only where root starts it."""
    if os.geteuid() == 0:
        user = pwd.getpwnam("www-data")
        for folder, _, files in os.walk(path):
            for name in ["", *files]:
                os.chown(os.path.join(folder, name), user.pw_uid, user.pw_gid)


def apache(work, modules, directives):
    """Starts it and returns its port."""
    port = free_port()
    loaded = "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in ("mpm_event", "authz_core", *modules))
    work.file(
        "apache.conf",
        f"""
{loaded}
ServerName localhost
PidFile {work.path}/apache.pid
DefaultRuntimeDir {work.path}
ErrorLog {work.path}/apache-error.log
User www-data
Group www-data
StartServers 1
Listen 127.0.0.1:{port}
{directives}
""",
    )
    work.start("apache", ["apache2", "-f", work.at("apache.conf"), "-DFOREGROUND"], port)
    return port
