"""Targets that clients in the wild send, which nginx with its defaults passes on, and so isobar has to.

HAProxy passes on the same ones, but for those with raw bytes beyond ASCII."""

LONG = "&".join(f"column[{n}][data]={n}&column[{n}][search][regex]=false" for n in range(120))

TARGETS = [each if isinstance(each, bytes) else each.encode() for each in (
    # The web itself.
    "/", "/?", "/index.html", "/favicon.ico", "/.well-known/acme-challenge/3i-5TqJ_0hF", "/.well-known/openid-configuration", "/robots.txt",
    "/a.b/c..d/...", "/~user/", "/%7Euser/", "/?a", "/?a=b&&c=&=d",
    "/search?q=a+b%20c", "/search?q=100%", "/search?q=%", "/search?q=%zz&x=%u2603", "/x?next=http://example.com/?y=z", "/x?next=//example.com/../y",
    "/x?a=b?c=d/e", "/x?path=..\\..\\windows&y=%5Cserver%5Cshare",
    "/x?q=/../../etc", "/x?" + "a" * 4000, "/" + "long/" * 300, "/x?" + LONG, "/x?%00", "/x?a;b;c", "/x?'quoted'", "/x?@=!$&()*,-.:;~", "/*", "/**/x",
    "/a*b", "/!important", "/$value", "/(x)", "/a,b,c", "/a=b&c=d",
    "/a'b", "/it's", "/a+b", "/c++/", "/c%2B%2B/", "/a%20b", "/100%25", "/50%25%20off", "/%23hash", "/what%3F", "/a%3Ab", "/x%5B0%5D",
    "/q%22uoted%22",
    # npm, Docker, Go, Maven, PyPI, Debian, Composer, RubyGems.
    "/@scope%2fpkg", "/@scope%2Fpkg/-/pkg-1.0.0.tgz", "/@scope/pkg/-/@scope/pkg-1.0.0-beta.1+build.5.tgz", "/-/package/@scope%2fpkg/dist-tags",
    "/-/v1/search?text=keywords:a,b&size=20", "/v2/", "/v2/library/ubuntu/manifests/sha256:0a1b2c",
    "/v2/a/b/blobs/uploads/?mount=sha256:0a&from=x/y", "/v2/_catalog?n=100&last=a%2Fb",
    "/github.com/!azure/azure-sdk-for-go/@v/v1.2.3+incompatible.info", "/golang.org/x/text/@v/list",
    "/sumdb/sum.golang.org/lookup/rsc.io/quote@v1.5.2",
    "/maven2/org/apache/maven/maven-metadata.xml.sha1", "/simple/a.b-c_d/", "/pool/main/g/gcc-12/g++-12_12.2.0-14+deb12u1_amd64.deb",
    "/debian/pool/main/libs/lib%2b%2b/x_1%3a2.0~rc1-1_all.deb", "/p2/monolog/monolog$0a1b.json", "/p2/a/b~dev.json",
    # GitLab, GitHub, Gerrit, Gitea, git itself.
    "/api/v4/projects/group%2Fproject/repository/files/src%2Fmain.rs/raw?ref=feature%2Fx",
    "/api/v4/projects/a%2Fb%2Fc/merge_requests?labels[]=a&labels[]=b", "/group/project/-/tree/feature/x?ref_type=heads",
    "/api/v4/projects/1/repository/branches/fix%2F%23123",
    "/repos/a/b/compare/main...user:branch", "/a/b/compare/v1.0..v1.1", "/a/b/blob/main/dir/.github/workflows/ci.yml",
    "/a/b/raw/main/with%20space.txt", "/a/b.git/info/refs?service=git-upload-pack", "/search?q=repo:a/b+is:open+label:%22good+first+issue%22",
    "/changes/x~master~I123", "/a/projects/a%2Fb",
    "/changes/a%2Fb~main~I8473b95934b5732ac55d26311a706c9c2bde9940/revisions/current/files/src%2Fa.c/diff?context=ALL&intraline",
    "/c/a/b/+/1234/2..3", "/plugins/gitiles/a/+/refs/heads/main/x.md", "/a/b/src/branch/c%2Fd/e",
    # S3 and other stores.
    "/bucket/a%20b.txt", "/bucket/a+b~c.txt", "/bucket/dir//file", "/bucket/trailing//", "/bucket/%E2%9C%93.txt", "/bucket/a%2Fb",
    "/bucket/key=value/year=2024/part-0000.parquet", "/bucket?list-type=2&prefix=a%2F&delimiter=%2F&continuation-token=1/a+b==",
    "/bucket/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F20240101%2Feu-1%2Fs3%2Faws4_request&X-Amz-SignedHeaders=host",
    "/bucket/x?uploads", "/bucket/x?versionId=a.b_c-d", "/bucket/!-_.*'()", "/bucket/a:b@c,d;e&f=g$h",
    "/v1/AUTH_x/c/o?temp_url_sig=a&temp_url_expires=1",
    "/storage/v1/b/x/o/a%2Fb%2Fc?alt=media", "/container/blob?sv=2022&sig=a%2Bb%3D", "/upload/drive?uploadType=resumable&upload_id=A-b_c",
    # OCSP, certificates, tokens.
    "/MFEwTzBNMEswSTAJBgUrDgMCGgUABBTrJdiQ%2Ficg9B19asFe73bPYs%2BreAQUdXGnGUgZvJ2d6kFH35TESHeZ03kCEFslzmkHxCZVZtM5DJmpVK0%3D",
    "/ocsp/MFEwTzBNMEswSTAJBgUrDgMCGgUABBT//icg9B19asFe73bPYs+reAQUdXGnGUgZvJ2d6kFH35TESHeZ03kCEFslzmkHxCZVZtM5DJmpVK0=",
    "/crl/a%20b(1).crl", "/verify/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s-_x",
    "/callback?code=4/0AX4XfWh-_x&state=a%3Db%26c&scope=email%20https://www.googleapis.com/auth/userinfo.email",
    "/saml?SAMLRequest=fZJ%2Fb%2BJA%2F&RelayState=https%3A%2F%2Fx%2F",
    # JSON, filters, expressions.
    '/api?filter={"a":1}', '/api?filter={"a":{"$gt":[1,2]},"b":"c%20d"}', "/api?filter=%7B%22a%22%3A1%7D", "/api?where=a<5|b>6", "/api?q=`x`^2",
    "/api?q=a|b||c", "/api?ids[]=1&ids[]=2&a[b][c]=d", "/api?x=[1,2]", "/api?x={}", "/api?x=\"y\"", "/api?x=~y&z=!",
    "/odata/Users('x')", "/odata/Users(Id=1,Name='O''Neil')/$count",
    "/odata/Items?$filter=contains(Name,'a%20b')%20and%20Price%20gt%205&$select=Id,Name&$orderby=Id%20desc", "/odata/$metadata",
    "/graphql?query={user(id:\"1\"){name,friends(first:2){edges{node}}}}", "/graphql?query=%7Bme%7Bname%7D%7D",
    "/sparql?query=SELECT%20*%20WHERE%20{?s%20?p%20<http://example.org/x>%20.%20FILTER(?s>1%20||%20?p^2)}",
    "/solr/x/select?q=*:*&fq={!term%20f=a}b&sort=score+desc", "/_search?q=a:b%20AND%20(c:[1%20TO%205]%20OR%20d:\"e\")", "/logs-*,metrics-*/_search",
    "/db/_design/x/_view/y?key=[\"a\",1]&startkey=\"a\"&endkey=\"a\ufff0\"",
    "/api/v1/query?query=sum(rate(http_requests_total{job=~\"a.*|b\"}[5m]))by(code)",
    "/api/datasources/proxy/1/api/v1/label/__name__/values?match[]={__name__=~\".%2B\"}", "/render?target=alias(a.*.b,'x')&from=-1h",
    "/jmx?qry=java.lang:type=Memory", "/api/v1/namespaces/default/pods/https:web:8443/proxy/",
    "/apis/apps/v1/deployments?fieldSelector=metadata.name!%3Dx&labelSelector=a+in+(b,c)",
    # Parameters in the path, sessions, wikis, archives, documents.
    "/app/page;jsessionid=0A1B2C.node1", "/app/page;jsessionid=0A?x=y", "/maps;lat=50;lon=20/view", "/map/points;a=1;b=2/c;d", "/;/x",
    "/wiki/C%2B%2B_(language)", "/wiki/AC/DC", "/wiki/AC%2FDC", "/wiki/Talk:Main_Page", "/wiki/%C3%9Cbung", "/wiki/Übung", "/wiki/日本語",
    "/wiki/%E6%97%A5%E6%9C%AC%E8%AA%9E", "/w/index.php?title=Ä&action=edit",
    "/web/2020/http://example.com/", "/web/20200101000000*/https://example.com/a//b?c=d", "/proxy/https://example.com:8443/x", "/http://example.com/",
    "/image/fit-in/300x200/filters:quality(80):format(webp)/https%3A%2F%2Fexample.com%2Fa.jpg",
    "/insecure/rs:fill:300:200/plain/s3://bucket/a.jpg@webp", "/iiif/2/a%2Fb.tif/full/,150/0/default.jpg",
    "/path/with:colon", "/@me", "/%40me", "/@user@example.com/1", "/users/a@example.com", "/users/a%40example.com", "/tags/%23x", "/t/c%23/1",
    "/emoji/😀", "/emoji/%F0%9F%98%80", "/emoji?x=😀", b"/latin/caf\xe9", b"/latin?q=caf\xe9", "/latin/caf%E9", "/sjis/%93%FA%96%7B",
    "/nfd/Cafe%CC%81", "/ar/مرحبا", "/x?q=日本語&y=ü",
    # Notebooks, WebDAV, mail, calendars, maps, media.
    "/api/contents/a%20b/Untitled%201.ipynb?type=notebook&hash=1", "/api/kernels/0a-1b/channels?session_id=x", "/user/a%40b/lab/tree/x.ipynb",
    "/remote.php/dav/files/u/Photos/a%20(1)%20&%20b.jpg", "/remote.php/dav/calendars/u/personal/0A%3D1.ics", "/dav/principals/__uids__/0A/",
    "/caldav/v2/a%40b/events/x_R20240101T000000@google.com.ics",
    "/mapi/emsmdb/?MailboxId=0a@example.com", "/wms?SERVICE=WMS&BBOX=-1.5,2,3,4&CRS=EPSG:4326&STYLES=&FORMAT=image/png;%20mode=8bit",
    "/tiles/1/2/3@2x.png", "/hls/a.m3u8?token=exp=1~acl=/*~hmac=0a", "/video/a,b,c,.mp4.urlset/master.m3u8",
    "/announce?info_hash=%12%34%ab%CD%00%ff&peer_id=-TR3000-&port=6881",
    # Empty segments and ends of all kinds.
    "/x//y", "/x//", "/x///y//z", "/a/%20/b", "/a./b", "/.a/.b", "/a/.../b", "/..a/b..", "/-/", "/_", "/a|b", "/a<b>c", "/a\"b", "/a`b`", "/a^b",
    "/a{b}c", "/a[b]c", "/a%7Cb", "/a%3Cb%3E", "/{tenant}/x", "/a%2Fb%2Fc%2F", "/x/%2F/y", "/x%2f%2fy",
)]
