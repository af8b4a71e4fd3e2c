# What a program under Puma believes that it is asked for: the path decoded, as routers read it, and cleaned too, as Rack's file server does.
require 'rack'

def say(text)
  [200, { 'content-type' => 'text/plain', 'content-length' => text.bytesize.to_s }, [text]]
end

run lambda { |env|
  host = Rack::Request.new(env).host.to_s.downcase
  return say('PROTECTED host') if host == 'admin.test' || host.end_with?('.adm.test')

  path = Rack::Utils.unescape_path(env['PATH_INFO'])
  clean = Rack::Utils.clean_path_info(path.b)
  return say('PROTECTED admin') if [path.b, clean].any? { |read| read == '/admin' || read.start_with?('/admin/') }

  say([path.b, clean].include?('/a/b') ? 'PROTECTED ab' : 'open')
}
