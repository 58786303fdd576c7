import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;

/** The client of the Java library, as its documentation has it. */
public class Get {
  public static void main(String[] arguments) throws Exception {
    HttpResponse<byte[]> response =
        HttpClient.newHttpClient()
            .send(HttpRequest.newBuilder(URI.create(arguments[0])).build(), HttpResponse.BodyHandlers.ofByteArray());
    System.out.write(response.body());
    System.out.flush();
  }
}
