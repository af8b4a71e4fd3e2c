"""Spellings of a path or a host that some server may take for the plain one, and ordinary URLs that must go through.

A spelling is what is sent: `target` and the `lines` about the host, as bytes, in a version of HTTP/1."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spelling:
    target: bytes
    lines: tuple = (b"Host: open.test",)
    version: bytes = b"1.1"

    def head(self, *more):
        return b"GET " + self.target + b" HTTP/" + self.version + b"\r\n" + b"".join(line + b"\r\n" for line in self.lines + more) + b"\r\n"

    def fields(self):
        """The same in HTTP/2; None where it cannot be said there."""
        named = [line[6:] for line in self.lines if line.startswith(b"Host: ")]
        if self.version != b"1.1" or len(named) != len(self.lines) or len(named) > 2:
            return None
        fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", self.target)]
        # Of two the second comes as a field beside the authority.
        return fields + list(zip((b":authority", b"host"), named))

    def is_text(self):
        """Whether no line has a character that ends or hides it."""
        return not any(byte < 32 or byte == 127 for line in (self.target, *self.lines) for byte in line) and b" " not in self.target

    def __str__(self):
        told = repr(self.target)[1:]
        lines = "" if self.lines == (b"Host: open.test",) else f" {[repr(line)[1:] for line in self.lines]}"
        return told + lines + ("" if self.version == b"1.1" else f" HTTP/{self.version.decode()}")


def raw(text):
    """Bytes from a text in which a character stands for a byte, or for its UTF-8 where it is beyond Latin-1's controls and letters."""
    return text if isinstance(text, bytes) else b"".join(bytes([ord(each)]) if ord(each) < 256 else each.encode() for each in text)


# What may stand for a slash, or be taken out beside one.
SLASHES = [
    "//", "///", "/./", "/.//", "//./", "/././", "/%2e/", "/%2E/", "/%2e%2f", "/.%2f", "/x/../", "/x/..//", "/x//../", "/x/./../", "/x/%2e%2e/",
    "/x/%2E%2E/", "/x/.%2e/", "/x/%2e./", "/x/y/../../", "/x/../y/../", "/x/..%2f", "/x/..%2F", "/x%2f../", "/x%2f..%2f", "/x%2F%2e%2e%2F",
    "/x/%2e%2e%2f", "/x/%252e%252e/", "/x/%252e%252e%252f", "/x/..%252f", "/x%252f..%252f", "/%252e/", "%2f", "%2F", "/%2f", "%2f/", "%2f%2f",
    "%2F%2f", "/%2F/", "%252f", "%252F", "%25252f", "/%252f", "%%32%66", "%%32f", "%2%66", "\\", "/\\", "\\/", "\\\\", "/\\/", "/.\\", "/x\\..\\",
    "/x/..\\", "/x\\../", "%5c", "%5C", "/%5c", "%5c/", "%5c%5c", "/%5C/", "/x%5c..%5c", "/x/..%5c", "/x%5c../", "/.%5c", "%255c", "/;/", "/;x/",
    "/;x=y/", "/;;/", "/;%2f", "/;a/;b/", "/.;/", "/.;x/", "/.;x=y/", "/;x/./", "/%2e;/", "/%2e;x/", "/.%3b/", "/x/..;/", "/x/..;y/", "/x/..;y=z/",
    "/x;y/../", "/x;y/..;z/", "/x/%2e%2e;/", "/x/%2e%2e;y/", "/x/.%2e;/", "/x/..%3b/", "/x/..;%2f", "/x/..;//", "/x//..;/", "/..;/", "/;/../", "/../",
    "/../../", "/%2e%2e/", "/..%2f", "/%2e%2e%2f", "%2f..%2f", "/..\\", "/..%5c", "\\..\\", "/.../", "/x/.../", "/....//", "/..../", "/%00/", "%00/",
    "/%00", "/.%00/", "/x/..%00/", "/x/.%00./", "/%20/", "/%20", "/x/..%20/", "/.%20/", "/%09/", "/%09", "/x/..%09/", "/%0a/", "/%0a", "/%0d",
    "/%0d%0a", "/x/..%0d/", "/+/", "/?/../", "/%3f/../", "/%23/../", "/x%23/../", "/x%3f/../", "/:/", "/x:/../", "/~/", "%c0%af", "%C0%AF", "/%c0%af",
    "%e0%80%af", "%f0%80%80%af", "%c1%9c", "/%c0%ae/", "/x/%c0%ae%c0%ae/", "/x/%c0%ae./", "/x/%c0%ae%c0%ae%c0%af", "/x/%e0%80%ae%e0%80%ae/",
    "/x/%u002e%u002e/", "%u002f", "%u2215", "%u2216", "%ef%bc%8f", "%ef%bc%bc", "%e2%88%95", "%e2%81%84", "\u2215", "\uff0f", "/x/\uff0e\uff0e/",
    "/x/%ef%bc%8e%ef%bc%8e/", "/\u200b", "/%e2%80%8b", "/\xad", "/%c2%ad", "/\x01", "/\x7f", "/\x80", "/\xa0", "/\t", "/\x0b", "/ ", "/\x00", "\r/",
    "/\n", "/x/%2e%2e%5c", "/%5c..%5c", "/x/..%c0%af", "/%2f..%2f", "//x/../", "//x/..//", "//..//", "/x/%2e%2E/", "//x/", "//x//", "///x/",
    "//x:80/", "//x:1/", "//@x/", "//x@y/", "//[::1]/", "//[/", "//x;y/", "//x%2f", "/\\x/", "\\\\x\\", "/%2fx/", "//%2f", "//;/", "/%", "/%/../",
    "/%zz/../", "/%2/../", "/x%/../", "/;x/../", "/;x=y/../", "/%3b/../", "/%3bx/../", "/;/%2e%2e/", "/;/./../", "/;//../", "/x/;/../../", "/x/;/../",
    "/;/..;/", "/x/;/..;/..;/", "//;/../", "%2f;%2f..%2f", "/.;/../", "/x/.;/../", "/;%2f../", "/;%2f..%2f", "/;\\..\\", "/x;%2f../", "/x;/..%2f",
    "/%20/../", "/%00/../", "/%2f/../", "/%5c/../", "/\\/../", "/%2e%2f../", "/..%2f..%2f", "/x/..%2f../",
]
# What may be taken off behind a path, or end it.
ENDS = [
    "", "?", "?q", "?/../..", "?x=/admin", "#", "#x", "?#", "%23", "%23x", "%3f", "%3fx", "%3F", ";", ";x", ";x=y", ";;", ";x;y", ";x=/",
    ";jsessionid=1", ";%2f", ";%2fx", ";%00", "%3b", "%3B", "%3bx", "%3bx=y", "/.", "/./", "/%2e", "/%2e/", "/.;", "/.;x", "/%2e;x", "/x/..",
    "/x/../", "/x/%2e%2e", "/x/%2e%2e/", "/x/..;", "/x/..;/", "/x/..;y", "%2fx%2f..", "%2f.", "%2f..%2f", "/..%2f", "\\.", "%5c.", "%5c", "\\", "%00",
    "%00x", "%00.html", "%00/", "%0a", "%0A", "%0d", "%0d%0a", "%09", "%20", "%20%20", "+", "%2b", "%a0", "%c2%a0", "\xa0", "%85", "%e2%80%8b",
    "\u200b", "%ad", "%c2%ad", "\xad", "%ef%bb%bf", "%cc%81", "%", "%%", "%2", "%zz", "%u002f", "%u0000", "%c0%80", "%c0", "\xc0", "\xff", "%ff", ".",
    "..", "%2e", "%2E", "%2e%2e", ".html", ".php", ".json", "~", "%7e", "&", "*", ":", "::$DATA", "@", "!", "$", "'", "\"", "<", ">", "|", "^", "`",
    "{}", "[]", "=", ",", " ", "\t", "\x00", "\x7f", "\x85", "\x1c", "\x1f", "\x0b", "\x0c", "\xa0/", "\xa0x", "\xc2\xa0", "\xc2\x85", "\xe2\x80\xa8",
]
# The same as parts of the path below.
BELOW = [
    "/x", "//x", "/./x", "/;/x", ";x/x", ";/x", "/x;y", "/.;/x", "%2fx", "%2Fx", "%2f", "%2f%2f", "/%2fx", "%2f/x", "\\x", "%5cx", "%5Cx", "/%2e/x",
    "/x/../y", "/x/../../admin", "/../admin/x", "/..;/admin/x", "/%2e%2e/admin/x", "/..%2fadmin%2fx", "/x%2f..%2fy", "%00/x", "/%00", "/%00x",
    "%252fx", "/x%252f..%252f", "/x%", "/%zz", "/../x", "/..%2fx", "%2f..%2fx", "/..;/x", "\\..\\x", "%5c..%5cx", "/%2e%2e/x", "/x/../../y",
    "/x/../../x/y", "/../", "/..", "//../x", "/./../x", "%2f..", "%2F..", "/..%2f..%2fx", "/%2e%2e%2fx", "\\..", "%5c..", "/..\\x",
    "/x%2f..%2f..%2fy", ";/../x", "/;/../x", ";x/../y", "/..;x", "%2f..;%2fx", "/.%2f..%2fx", "/..%5cx", "%2f..%5cx", "%2f%2e%2e%2fx", "%2f../x",
    "%5c../x", "/x?y", "/?", "/#", "?/x", "%3f/x", "%23/x", "%3b/x", "%20/x", "%09/x", "/\xff", "/%ff", "/x\xe9", "/x|y", "/<x>", "/\"", "/ü", "//",
    "/", "///", "%2f/", "/%2f",
]
# In front of a path.
FORMS = [
    "http://open.test", "HTTP://open.test", "hTTp://OPEN.TEST", "https://open.test", "http://open.test:80", "http://open.test:", "http://other.test",
    "http://127.0.0.1", "http://[::1]", "http://[::1]:80", "http://u@open.test", "http://u:p@open.test", "http://open.test/", "http://open.test//",
    "http://open.test/.", "http://open.test/x/..", "http://open.test\\", "http://open.test%2f", "http://open.test;", "http://open.test?",
    "http://open.test#", "http://open.test:80:80", "http://open.test:x", "http://", "http:", "http:/", "http:///", "http:\\\\open.test",
    "http://open.test.", "//open.test", "/http://open.test", "/http:", "ftp://open.test", "ws://open.test", "file://", "javascript:", "x:", ":", "*",
    "@", "?", "#", "%", ";", ".", "..", "open.test:80", "open.test", "http://%6fpen.test", "http://open.test%00", " ", "\t", "\x00", "%2f", "%5c",
    "\\", "/%00", "http://xn--pn-fka.test", "http://öpen.test", "/.", "/..", "/*",
]


def escaped(byte, upper=False):
    return f"%{byte:02X}" if upper else f"%{byte:02x}"


def letters(letter):
    """One letter in other ways."""
    code = ord(letter)
    low, high = escaped(code), escaped(code, True)
    digits = low[1:]
    return [
        low, high, f"%25{digits}", f"%2525{digits}", f"%%{ord(digits[0]):02x}%{ord(digits[1]):02x}", f"%{escaped(ord(digits[0]))}{digits[1]}",
        f"%{digits[0]}{escaped(ord(digits[1]))}", f"%u00{digits}", f"%U00{digits}", f"\\u00{digits}", f"\\x{digits}", f"&#x{digits};",
        f"%{0xC0 | code >> 6:02x}%{0x80 | code & 63:02x}", f"%e0%{0x80 | code >> 6:02x}%{0x80 | code & 63:02x}", letter.upper(),
        escaped(ord(letter.upper())), chr(0xFEE0 + code), "".join(escaped(each) for each in chr(0xFEE0 + code).encode()), f"%uff{code - 0x20:02x}",
        f"{letter}%cc%81", f"{letter};x", f"{letter}%00", f"%00{letter}", f"{letter}\x00", f"{letter}%", f"%{letter}", f"{letter}%0a", f"{letter}\t",
        f"{letter}%20", f"{letter}\\", f"{letter}/", f"{letter}%e2%80%8b", f"{letter}\xad", f"x%08{letter}", f"%{digits[0]} {digits[1]}",
        f"%0{digits}", f"{letter}%2f", chr(0x24B6 + code - 97), chr(0x1D41A + code - 97),
    ]


def of_path(segments, below):
    """Spellings of the path of these segments, and, where all below it belongs to it, of such."""
    path = "/" + "/".join(segments)
    paths = [path]
    for at in range(len(segments)):
        for slash in SLASHES:
            paths.append("".join((slash if each == at else "/") + segment for each, segment in enumerate(segments)))
    for slash in SLASHES[:30]:
        paths.append("".join(slash + segment for segment in segments))
    for at, letter in enumerate(path):
        if letter.isalpha():
            paths += [path[:at] + other + path[at + 1:] for other in letters(letter)]
    plain = ["".join(escaped(ord(letter), upper) for letter in segment) for upper in (False, True) for segment in segments]
    low, high = plain[:len(segments)], plain[len(segments):]
    paths += [
        "/" + "/".join(low), "/" + "/".join(high), "%2f" + "%2f".join(low), "/" + "%2F".join(high), "//" + "//".join(low), "/x/../" + "/".join(low),
        "/./" + "/./".join(high), "/;x/" + "/;x/".join(low), "/" + ";x/".join(low) + ";x", "/x%2f..%2f" + "%2f".join(high),
        "/" + "/".join(low).replace("%", "%25"), "/" + "\\".join(low), path.upper(), path.title(), path.swapcase(), path + path, "/x" + path,
    ]
    first = "/" + escaped(ord(path[1])) + path[2:]
    for slash in SLASHES[:50]:
        paths.append(slash + first[1:])
    paths += [path + end for end in ENDS]
    paths += [first + end for end in ENDS[:50]]
    if below:
        paths += [path + end for end in BELOW]
        paths += [first + end for end in BELOW[::2]]
    paths += [form + path for form in FORMS]
    paths += [form + path + "/" for form in FORMS[:24]]
    paths += [path[1:], path[1:] + "/", ""]
    spelt = [Spelling(raw(each)) for each in paths]
    for line in (b"Host: open.test:80", b"Host: OPEN.test", b"Host: open.test."):
        spelt.append(Spelling(raw(path), (line,)))
    # Without a host, and request lines that are none.
    spelt += [Spelling(raw(target), (), b"1.0") for target in (path, "/." + path, "http://open.test" + path)]
    spelt.append(Spelling(raw(path), version=b"1.0"))
    spelt += [Spelling(raw(target)) for target in (path + " ", " " + path, path + " HTTP/1.1 x", path + "\tHTTP/1.1")]
    return list(dict.fromkeys(spelt))


# Behind a host.
TAILS = [
    "", ":80", ":", ":0", ":080", ":443", ":65535", ":65536", ":99999999999999999999", ":+80", ":-1", ":80x", ":x", ":80:80", "::", ": 80", ":%38%30",
    ".", ".:80", "..", "..:80", ".:", "...", "%2e", "%2E", "%2e:80", "%00", "%20", " ", "\t", " :80", ". ", ",", ",open.test", ", open.test",
    " open.test", ";", ";x", ";x=y", "/", "/x", "//", "/..", "?", "?x", "#", "#x", "#@open.test", "\\", "\\x", "\\@open.test", "@", "@open.test",
    "%40open.test", "%2f", "%2fx", "%3a80", "%3A80", "%23", "%3f", "%5c", "!", "$", "&", "'", "\"", "(", ")", "*", "+", "=", "~", "_", "|", "^", "`",
    "<", ">", "{", "}", "[", "]", "\x00", "\x01", "\x7f", "\xa0", "\xad", "\xc2\xad", "\xff", "%ad", "%c2%ad", "\u3002", "%e3%80%82", "\uff0e",
    "%ef%bc%8e", "\uff61", "\u200b", "%e2%80%8b", "\uff1a80", "%ef%bc%9a80", ":８０", "\ufeff", "%zz", "%",
]
# Before one.
HEADS = [
    ".", "..", " ", "  ", "\t", "@", "u@", "u:p@", "open.test@", "open.test:80@", "open.test%40", "open.test#@", "//", "/", "http://", "https://",
    "[", "\\", "\\\\", "*", "%", "%00", "%20", "\x00", "\xad", "%c2%ad", "\u200b", "\ufeff", ",", ";", "open.test,", "open.test, ", "open.test ",
    "open.test;", "open.test/", "open.test#", "open.test?", "open.test\\", "open.test:", "xn--", "-", "_", "\"", "'", "(", "x:", "open.test:80,",
]


def of_host(host):
    """Spellings of a host: in the field, in the target, in both."""
    hosts = [host, host.upper(), host.title(), host.swapcase()]
    hosts += [host + tail for tail in TAILS] + [head + host for head in HEADS]
    hosts += [host.upper() + ".", host.upper() + ":80", host.title() + ".:80", f"[{host}]", f'"{host}"', f"<{host}>"]
    hosts += ["".join(escaped(ord(each), upper) for each in host) for upper in (False, True)]
    for at, letter in enumerate(host):
        before, behind = host[:at], host[at + 1:]
        others = [escaped(ord(letter)), escaped(ord(letter), True), f"%25{ord(letter):02x}"]
        if letter.isalpha():
            wide, round_ = chr(0xFEE0 + ord(letter)), chr(0x24B6 + ord(letter) - 97)
            others += [letter.upper(), wide, "".join(map(escaped, wide.encode())), round_, letter + "\xad", letter + "%c2%ad", letter + "%00"]
        if letter == ".":
            others += [
                "\u3002", "\uff0e", "\uff61", "%e3%80%82", "%ef%bc%8e", "%ef%bd%a1", "..", "%2e.", ".%2e", ",", ":", "_", "%25%32%65", ". ", "\t.",
                "\\", "/", ".\x00", "./", ".\u200b",
            ]
        if letter == "s":
            others += ["\u017f", "%c5%bf", "\u02e2"]
        hosts += [before + other + behind for other in others]
    # A-labels of full width letters: nobody but a converter of IDNA would make them, and it refuses to.
    wide = chr(0xFEE0 + ord(host[0])) + host[1:].split(".")[0]
    hosts += [f"xn--{wide.encode('punycode').decode()}{host[host.index('.'):]}", "xn--" + host]
    spelt = [Spelling(b"/", (b"Host: " + raw(each),)) for each in hosts]
    # In the target, where it outweighs the field.
    forms = [f"http://{each}/" for each in hosts] + [
        f"http://{host}", f"HTTP://{host}/", f"hTTp://{host.upper()}:80/", f"https://{host}/", f"http://{host}?x", f"http://{host}#x",
        f"http://{host}\\x", f"http:{host}/", f"http:/{host}/", f"http:///{host}/", f"http:\\\\{host}/", f"//{host}/", f"///{host}/", f"/\\{host}/",
        f"\\\\{host}/", f"/{host}/", f"{host}/", host, f"{host}:80", f"@{host}/", f"http://open.test@{host}/", f"http://open.test\\@{host}/",
        f"http://open.test#@{host}/", f"http://open.test?@{host}/", f"http://open.test/@{host}/", f"ftp://{host}/", f"ws://{host}/", f"//u@{host}/",
        f"//{host}:80/", f"/x//{host}/", f"/http://{host}/", f"/.//{host}/", f"//{host}\\x", f"//{host}?x", f"//{host}",
    ]
    spelt += [Spelling(raw(each)) for each in forms]
    named = host.encode()
    either = b"Host: " + named, b"Host: open.test"
    for lines in (
        either, either[::-1], (either[0],) * 2, (either[0], b"Host: "), (b"Host: ", either[0]), (b"Host:" + named,), (b"HOST: " + named,),
        (b"Host : " + named,), (b" Host: " + named,), (b"Host: ", b" " + named), (b"Host:", b"\t" + named), (either[1], b" Host: " + named),
        (either[1], b" " + named), (either[1], b"host: " + named), (b"\tHost: " + named, either[1]), (b"Host\t: " + named, either[1]),
        (b"Host\x00: " + named, either[1]), (either[1], b"Host\x0b: " + named), (either[1], b"H\xf6st: " + named), (b"Host: open.test\t" + named,),
        (b"Host: open.test\r" + named,), (b"Host: open.test\n" + named,), (b"Host: open.test\nHost: " + named,),
        (b"Host: open.test\rHost: " + named,), (either[1], b"X-Forwarded-Host: " + named), (either[1], b"Forwarded: host=" + named),
        (either[1], b"X-Forwarded-Server: " + named), (b"X: y\nHost: " + named, either[1]), (),
    ):
        for version in (b"1.1", b"1.0"):
            spelt.append(Spelling(b"/", lines, version))
    for version in (b"1.1", b"1.0"):
        spelt += [Spelling(f"http://{host}/".encode(), lines, version) for lines in ((), (b"Host: ",), either[1:], either[:1], either)]
        spelt.append(Spelling(b"http://open.test/", either[:1], version))
    return list(dict.fromkeys(spelt))


def below_host(host):
    """Spellings of names below one that belong to it, too long ones above all; some of those that the name itself has."""
    longs = [
        "%61" * 80, "a" * 63 + ".", "a" * 64 + ".", "a" * 250 + ".", "a" * 300 + ".", "a." * 120, "a." * 124, "a." * 150, "a." * 2000,
        "%41" * 100 + ".",
    ]
    spelt = [Spelling(b"/", (b"Host: " + raw(long + host),)) for long in longs] + [Spelling(raw(f"http://{long}{host}/")) for long in longs]
    return spelt + of_host("x." + host)[::3]
