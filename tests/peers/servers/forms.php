<?php
// What a form has sent, as PHP reads it: fields, and files with their hashes. A GET is answered with the form.
header('content-type: application/json');
if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
    echo json_encode(['query' => $_GET, 'scheme' => $_SERVER['HTTP_X_FORWARDED_PROTO'] ?? null]);
    return;
}
$files = [];
foreach ($_FILES as $name => $file) {
    $files[$name] = ['name' => $file['name'], 'error' => $file['error'],
        'hash' => $file['error'] === UPLOAD_ERR_OK ? hash_file('sha256', $file['tmp_name']) : null];
}
echo json_encode(['fields' => $_POST, 'files' => $files, 'cookies' => $_COOKIE]);
