// What an application under Spring Boot, Tomcat and Jetty believes that it is asked for: Paths SPRING TOMCAT TOMCAT_LENIENT JETTY
// JETTY_LENIENT (all are ports). The lenient ones are set to take whatever they can be made to take, encoded slashes above all.

import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.util.Map;
import org.apache.catalina.Context;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;
import org.eclipse.jetty.ee11.servlet.ServletContextHandler;
import org.eclipse.jetty.ee11.servlet.ServletHolder;
import org.eclipse.jetty.http.UriCompliance;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.SpringBootConfiguration;
import org.springframework.boot.autoconfigure.EnableAutoConfiguration;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.RestController;

public class Paths {
    // What a servlet is mapped to, and what it is.
    static final Map<String, String> MAPPINGS = Map.of("/admin/*", "PROTECTED admin", "/a/b", "PROTECTED ab", "/", "open");

    static String read(HttpServletRequest request, String path) {
        String host = request.getServerName().toLowerCase();
        return host.equals("admin.test") || host.endsWith(".adm.test") ? "PROTECTED host" : path;
    }

    static class Resource extends HttpServlet {
        private final String path;

        Resource(String path) {
            this.path = path;
        }

        @Override
        protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
            byte[] body = read(request, path).getBytes();
            response.setContentType("text/plain");
            response.setContentLength(body.length);
            response.getOutputStream().write(body);
        }
    }

    // Without a scan for components, which the package without a name does not bear.
    @SpringBootConfiguration
    @EnableAutoConfiguration
    @RestController
    static class Site {
        @GetMapping({"/admin", "/admin/**"})
        String admin(HttpServletRequest request) {
            return read(request, "PROTECTED admin");
        }

        @GetMapping("/a/b")
        String ab(HttpServletRequest request) {
            return read(request, "PROTECTED ab");
        }

        @GetMapping("/**")
        String open(HttpServletRequest request) {
            return read(request, "open");
        }
    }

    static void tomcat(int port, boolean lenient) throws Exception {
        Tomcat tomcat = new Tomcat();
        File base = Files.createTempDirectory("paths-tomcat").toFile();
        base.deleteOnExit();
        tomcat.setBaseDir(base.getPath());
        Connector connector = new Connector();
        connector.setProperty("address", "127.0.0.1");
        connector.setPort(port);
        if (lenient) {
            connector.setEncodedSolidusHandling("decode");
            connector.setEncodedReverseSolidusHandling("decode");
            connector.setAllowBackslash(true);
            connector.setRejectSuspiciousURIs(false);
            connector.setProperty("relaxedPathChars", "\"<>[\\]^`{|}");
            connector.setProperty("relaxedQueryChars", "\"<>[\\]^`{|}");
        }
        tomcat.setConnector(connector);
        Context context = tomcat.addContext("", null);
        MAPPINGS.forEach((mapping, resource) -> {
            Tomcat.addServlet(context, resource, new Resource(resource));
            context.addServletMappingDecoded(mapping, resource);
        });
        tomcat.start();
    }

    static void jetty(int port, boolean lenient) throws Exception {
        Server server = new Server();
        HttpConfiguration configuration = new HttpConfiguration();
        if (lenient) {
            configuration.setUriCompliance(UriCompliance.UNSAFE);
        }
        ServerConnector connector = new ServerConnector(server, new HttpConnectionFactory(configuration));
        connector.setHost("127.0.0.1");
        connector.setPort(port);
        server.addConnector(connector);
        ServletContextHandler context = new ServletContextHandler("/");
        context.getServletHandler().setDecodeAmbiguousURIs(lenient);
        MAPPINGS.forEach((mapping, resource) -> context.addServlet(new ServletHolder(new Resource(resource)), mapping));
        server.setHandler(context);
        server.start();
    }

    public static void main(String[] ports) throws Exception {
        tomcat(Integer.parseInt(ports[1]), false);
        tomcat(Integer.parseInt(ports[2]), true);
        jetty(Integer.parseInt(ports[3]), false);
        jetty(Integer.parseInt(ports[4]), true);
        new SpringApplication(Site.class).run("--server.address=127.0.0.1", "--server.port=" + ports[0], "--spring.main.banner-mode=off");
    }
}
