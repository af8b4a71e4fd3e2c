<?php
// What a program in PHP believes that it is asked for: the front controller of `php -S ADDRESS paths.php`.
$host = strtolower(preg_replace('/:\d*$/', '', $_SERVER['HTTP_HOST'] ?? ''));
$path = rawurldecode(parse_url($_SERVER['REQUEST_URI'], PHP_URL_PATH) ?: '/');
if ($host === 'admin.test' || str_ends_with($host, '.adm.test')) {
    echo 'PROTECTED host';
} elseif ($path === '/admin' || str_starts_with($path, '/admin/')) {
    echo 'PROTECTED admin';
} else {
    echo $path === '/a/b' ? 'PROTECTED ab' : 'open';
}
