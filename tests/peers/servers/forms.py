"""A form in Django, with the token that guards it against other sites. What was sent is told in JSON.

usage: gunicorn forms:application
"""

import hashlib

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, HttpResponseRedirect, JsonResponse
from django.middleware.csrf import get_token
from django.urls import path

# That isobar's word on the scheme counts is all that Django needs to know of it.
settings.configure(
    SECRET_KEY="for tests",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
    USE_X_FORWARDED_HOST=True,
)
django.setup()


def digest(file):
    whole = hashlib.sha256()
    for chunk in file.chunks():
        whole.update(chunk)
    return whole.hexdigest()


def form(request):
    if request.method != "POST":
        return HttpResponse(get_token(request))
    files = {name: [{"name": file.name, "hash": digest(file)} for file in request.FILES.getlist(name)] for name in request.FILES}
    return JsonResponse({"fields": request.POST.dict(), "files": files, "here": request.build_absolute_uri(), "secure": request.is_secure()})


def moved(request):
    return HttpResponseRedirect(request.build_absolute_uri("/django/form"))


urlpatterns = [path("django/form", form), path("django/moved", moved)]
application = get_wsgi_application()
